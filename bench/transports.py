"""How a load speaks to a cluster: POST /v1/turns, one request a question. No torch.

    async with Turns(url) as transport:
        speaker = transport.speaker()                   # one per conversation
        async for event in speaker.ask(question): ...   # takes as long as the question lasts, then gives its answer

`ask` returns once the events end; leaving its loop interrupts the answer.
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


class Speaker(Protocol):
    def ask(self, question: Question) -> AsyncGenerator[Event]: ...
    async def close(self) -> None: ...


class Transport(Protocol):
    def speaker(self) -> Speaker: ...
    async def __aenter__(self) -> "Transport": ...
    async def __aexit__(self, *_: object) -> None: ...


class Turns:
    """The recording is uploaded at its end, as the page does it."""

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
    def __init__(self, transport: Turns) -> None:
        self._transport = transport

    async def ask(self, question: Question) -> AsyncGenerator[Event]:
        await asyncio.sleep(question.seconds)
        client, options = self._transport.client, self._transport.options
        async with aclosing(client.turn(question.wav, content_type="audio/wav", **options)) as events:
            async for event in events:
                yield event

    async def close(self) -> None:
        pass
