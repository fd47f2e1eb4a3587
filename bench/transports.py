"""How a load speaks to a cluster: here over POST /v1/turns, a request a question; live_transport.py over /v1/realtime.

    async with Turns(url) as transport:
        speaker = transport.speaker()                   # one per conversation
        async for event in speaker.ask(question): ...   # takes as long as the question lasts, then gives its answer

`ask` returns once the events end; leaving its loop interrupts the answer: over HTTP at once, live with the first words
of the next question. No torch.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from omni.serve.client import AsyncClient
from omni.serve.protocol import Event


@dataclass(frozen=True)
class Question:
    wav: bytes
    seconds: float
    pcm16: bytes = b""  # the same samples: int16 LE, mono, 16 kHz


@dataclass(frozen=True)
class Spoken:
    """When a live question was over, on the loop's clock; before its answer."""

    ended: float  # its last word was said
    committed: float  # the silence after it is long enough for a server to know: the answer is waited for from here


@dataclass(frozen=True)
class Silenced:
    """An answer was talked over, and is silent. Seconds until then, from …"""

    from_speech: float  # the first sample that the server's ear takes for speech
    from_onset: float  # where it has been speech for long enough to be no click
    from_event: float  # the server's word that somebody speaks: 0 unless sound came even after it


class Speaker(Protocol):
    talks_over: bool  # an interruption is the next question's beginning, and no thought comes before it

    def ask(self, question: Question) -> "AsyncGenerator[Event | Spoken | Silenced]": ...
    async def close(self) -> None: ...


class Transport(Protocol):
    def speaker(self) -> Speaker: ...
    async def __aenter__(self) -> "Transport": ...
    async def __aexit__(self, *_: object) -> None: ...


class Turns:
    """The recording is uploaded at its end, as the page's second tab does it."""

    def __init__(self, url: str, api_key: str | None, options: dict[str, Any]) -> None:
        self.url, self.api_key, self.options = url, api_key, options

    def speaker(self) -> Speaker:
        return _TurnsSpeaker(self)

    async def __aenter__(self) -> "Turns":
        self.client = AsyncClient(self.url, api_key=self.api_key)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()


class _TurnsSpeaker:
    talks_over = False

    def __init__(self, transport: Turns) -> None:
        self._transport = transport

    async def ask(self, question: Question) -> AsyncGenerator[Event | Spoken | Silenced]:
        await asyncio.sleep(question.seconds)
        client, options = self._transport.client, self._transport.options
        async with aclosing(client.turn(question.wav, content_type="audio/wav", **options)) as events:
            async for event in events:
                yield event

    async def close(self) -> None:
        pass
