"""A bare client of /v1/realtime for tests: JSON and binary messages as they are on the wire, all of them kept.

async with talk(url) as client:
    await client.send("session.update", session={...})
    await client.until("session.updated")
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import websockets


class RealtimeClient:
    def __init__(self, connection: websockets.ClientConnection) -> None:
        self.connection = connection
        self.token: dict[str, Any] = {}  # omni.session.token, which every session begins with
        self.heard: list[dict[str, Any]] = []  # in their order; a binary frame is {"type": "frame", "data": bytes}

    async def send(self, kind: str, **fields: Any) -> None:
        await self.connection.send(json.dumps({"type": kind, **fields}))

    async def append(self, pcm16: bytes, portion: int = 2**15) -> None:
        for start in range(0, len(pcm16), portion):
            audio = base64.b64encode(pcm16[start : start + portion]).decode()
            await self.send("input_audio_buffer.append", audio=audio)

    async def update(self, **session: Any) -> dict[str, Any]:
        await self.send("session.update", session={"type": "realtime", **session})
        return (await self.until("session.updated", "error"))["session"]

    async def next(self, seconds: float = 20.0) -> dict[str, Any]:
        async with asyncio.timeout(seconds):
            message = await self.connection.recv()
        event = {"type": "frame", "data": message} if isinstance(message, bytes) else json.loads(message)
        self.heard.append(event)
        return event

    async def until(self, *kinds: str, seconds: float = 20.0) -> dict[str, Any]:
        """The next event of one of these kinds; an error that is not among them fails the test."""
        while (event := await self.next(seconds))["type"] not in kinds:
            assert event["type"] != "error", event
        return event

    def kinds(self, since: int = 0) -> list[str]:
        return [each["type"] for each in self.heard[since:]]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [each for each in self.heard if each["type"] == kind]

    def sound(self, since: int = 0) -> bytes:
        deltas = [each for each in self.heard[since:] if each["type"] == "response.output_audio.delta"]
        return b"".join(base64.b64decode(each["delta"]) for each in deltas)


@asynccontextmanager
async def talk(url: str, **options: Any) -> AsyncIterator[RealtimeClient]:
    """Connected, and session.created and its token have come."""
    address = url.replace("http://", "ws://") + "/v1/realtime"
    async with websockets.connect(address, compression=None, max_size=None, **options) as connection:
        client = RealtimeClient(connection)
        assert (await client.next())["type"] == "session.created"
        client.token = await client.next()
        assert client.heard.pop()["type"] == "omni.session.token"
        yield client
