"""A client of the controller: speech in, events out, over POST /v1/turns. Knows HTTP; knows no torch and no Ray.

    with Client("http://127.0.0.1:8000") as client:
        for event in client.turn(Path("question.wav").read_bytes(), seed=1):
            match event:
                case TextDelta(text): print(text, end="")
                case AudioDelta(pcm16): play(pcm16)              # int16, mono, 16 kHz
                case Failed(code, message): print(code, message)

Every turn ends with exactly one Done or Failed, whatever happens on the way; leaving the loop stops the turn.
AsyncClient is the same with `async`.
"""

import json
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from typing import Any

import httpx

from omni.serve.events import FRAMES, EventError, FrameReader, Started
from omni.serve.protocol import Done, Event, Failed

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 90.0  # longer than the controller's own deadlines: then the line is dead


class Client:
    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = SILENCE_SECONDS) -> None:
        self._http = httpx.Client(**_settings(url, api_key, timeout))

    def turn(self, audio: bytes, *, content_type: str = "", **options: Any) -> Generator[Event]:
        """Ask. Options are those of /v1/turns: model, system, adaptor, temperature, top_p, top_k, max_new_tokens,
        seed."""
        answer = _Answer()
        try:
            with self._http.stream("POST", "/v1/turns", **_question(audio, content_type, options)) as response:
                if response.status_code != 200:
                    yield _refusal(response, response.read())
                    return
                for data in response.iter_raw():
                    yield from answer.feed(data)
        except (httpx.HTTPError, EventError) as exc:
            yield from answer.lost(exc)
        else:
            yield from answer.lost(None)

    def get(self, path: str) -> Any:
        """The JSON of a GET route: "/v1/models", "/v1/cluster", "/ready". Raises httpx.HTTPError."""
        return self._http.get(path).json()

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient:
    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = SILENCE_SECONDS) -> None:
        self._http = httpx.AsyncClient(**_settings(url, api_key, timeout))

    async def turn(self, audio: bytes, *, content_type: str = "", **options: Any) -> AsyncGenerator[Event]:
        """As Client.turn. Break out under contextlib.aclosing, so that the turn stops at once."""
        answer = _Answer()
        try:
            async with self._http.stream("POST", "/v1/turns", **_question(audio, content_type, options)) as response:
                if response.status_code != 200:
                    yield _refusal(response, await response.aread())
                    return
                async with aclosing(response.aiter_raw()) as portions:  # type: ignore[type-var]
                    async for data in portions:
                        for event in answer.feed(data):
                            yield event
        except (httpx.HTTPError, EventError) as exc:
            for event in answer.lost(exc):
                yield event
        else:
            for event in answer.lost(None):
                yield event

    async def get(self, path: str) -> Any:
        """As Client.get."""
        return (await self._http.get(path)).json()

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Answer:
    """The bytes of one response → events, the last of them Done or Failed."""

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._ended = False

    def feed(self, data: bytes) -> Generator[Event]:
        for event in self._reader.feed(data):
            if isinstance(event, Started) or self._ended:
                continue
            self._ended = isinstance(event, Done | Failed)
            yield event

    def lost(self, exc: Exception | None) -> Generator[Event]:
        """The response is over. Was it whole?"""
        if self._ended:
            return
        self._ended = True
        if isinstance(exc, httpx.ConnectError | httpx.ConnectTimeout):
            yield Failed("unreachable", f"No controller answers there: {exc}", 503, retry_after=1.0)
        elif isinstance(exc, EventError):
            yield Failed("bad_stream", str(exc), 502)
        else:
            yield Failed("stream_lost", f"The answer broke off: {exc or 'no last event'}", 502)


def _settings(url: str, api_key: str | None, timeout: float) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    # No proxy from the environment: a cluster is named by its own address.
    timeouts = httpx.Timeout(timeout, connect=CONNECT_SECONDS)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)  # no turn waits for another one's end
    return {"base_url": url, "headers": headers, "timeout": timeouts, "limits": limits, "trust_env": False}


def _question(audio: bytes, content_type: str, options: dict[str, Any]) -> dict[str, Any]:
    headers = {"accept": FRAMES, "content-type": content_type or "application/octet-stream"}
    given = {name: value for name, value in options.items() if value is not None}
    return {"content": audio, "headers": headers, "params": given}


def _refusal(response: httpx.Response, body: bytes) -> Failed:
    try:
        error = json.loads(body)["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        code, message = "bad_response", f"HTTP {response.status_code}, and no reason given: is this a controller?"
    wait = response.headers.get("retry-after", "")
    return Failed(code, message, response.status_code, float(wait) if wait.isdecimal() else None)
