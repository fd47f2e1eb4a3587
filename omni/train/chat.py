"""A language model behind an OpenAI-compatible endpoint: a system text and a user's text in, one text out.

    chat = Chat.named("openai:http://127.0.0.1:8080/v1#llama-3.3-70b")
    chat("Be brief.", "What is love?")
    chat("Be brief.", "And hate?", history=[("What is love?", "Love is care.")])

The key comes from $OMNI_CHAT_KEY or $OPENAI_API_KEY, never from the command line. Only what the user names is called.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

PREFIX = "openai:"
KEYS = ("OMNI_CHAT_KEY", "OPENAI_API_KEY")
PAUSES = (1.0, 4.0)  # seconds before a request is sent again
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}  # statuses that may pass
MAX_BYTES = 1_000_000  # of a reply


class ChatError(RuntimeError):
    """The endpoint cannot be reached, refuses, or replies with something else than a chat completion."""


@dataclass(frozen=True)
class Chat:
    url: str  # …/v1
    model: str
    key: str = ""
    deadline: float = 60.0  # seconds, of one request
    json_reply: bool = False  # ask for a JSON object
    sleep: Callable[[float], None] = time.sleep

    @classmethod
    def named(cls, name: str, **settings) -> "Chat":
        """ "openai:URL#MODEL" """
        url, hash_, model = name.removeprefix(PREFIX).partition("#")
        if not (name.startswith(PREFIX) and url.startswith(("http://", "https://")) and hash_ and model):
            raise ChatError(f"{name!r} is not openai:URL#MODEL, as in openai:http://127.0.0.1:8080/v1#llama.")
        key = next((os.environ[each] for each in KEYS if os.environ.get(each)), "")
        return cls(url.rstrip("/"), model, key, **settings)

    def __call__(self, system: str, user: str, seed: int = 0, history: Sequence[tuple[str, str]] = ()) -> str:
        """Greedy, after a `history` of questions and answers. What may pass is tried again, twice. Raises ChatError."""
        earlier = [
            {"role": role, "content": text}
            for exchange in history
            for role, text in zip(("user", "assistant"), exchange, strict=True)
        ]
        messages = [{"role": "system", "content": system}, *earlier, {"role": "user", "content": user}]
        for pause in (*PAUSES, None):
            try:
                return self._ask(messages, seed)
            except _MayPass as exc:
                if pause is None:
                    raise ChatError(f"{self.url}: {exc} ({len(PAUSES) + 1} times)") from exc
                self.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _ask(self, messages: list[dict[str, str]], seed: int) -> str:
        body: dict[str, Any] = {"model": self.model, "messages": messages, "temperature": 0, "seed": seed}
        if self.json_reply:
            body["response_format"] = {"type": "json_object"}
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            content = self._post(body, headers)
            return json.loads(content)["choices"][0]["message"]["content"].strip()
        except httpx.HTTPError as exc:
            raise _MayPass(f"no reply: {exc!r}") from exc
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as exc:
            raise ChatError(f"{self.url} replied with no chat completion: {exc!r}") from exc

    def _post(self, body: dict[str, Any], headers: dict[str, str]) -> bytes:
        """Whole within the deadline: httpx's own timeouts start anew with every byte."""
        end = time.monotonic() + self.deadline
        with (
            httpx.Client(timeout=self.deadline, trust_env=False) as client,
            client.stream("POST", f"{self.url}/chat/completions", json=body, headers=headers) as reply,
        ):
            content = b""
            for piece in reply.iter_bytes():
                content += piece
                if time.monotonic() > end:
                    raise _MayPass(f"no whole reply within {self.deadline:g} s")
                if len(content) > MAX_BYTES:
                    raise ChatError(f"{self.url} replied with more than {MAX_BYTES} bytes.")
        if reply.status_code in AGAIN:
            raise _MayPass(f"status {reply.status_code}")
        if reply.status_code != 200:
            raise ChatError(f"{self.url} refused with {reply.status_code}: {content[:200].decode(errors='replace')}")
        return content


class _MayPass(Exception):
    pass
