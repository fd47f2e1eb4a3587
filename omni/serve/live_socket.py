"""One WebSocket: messages out in order, withdrawn while they still wait, and never more waiting than the bound.

    socket.post(event)                          # at once; a task sends while there is something to send
    socket.post(event, owner=answer, seconds=0.2)
    unsent = socket.withdraw(answer)            # seconds of sound that never left
    await socket.room()                         # until few enough wait
    message = await socket.receive()            # str or bytes; None: the client is gone

Knows ASGI; knows no event. `LiveProtocol` is uvicorn's own protocol, for clients that have stopped reading.
"""

import asyncio
import json
import logging
from collections import deque
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

ROOM = 64  # messages; from here on the sender waits, and the client is not listened to
Message = str | bytes


class LiveSocket:
    def __init__(self, receive: Receive, send: Send, *, send_seconds: float) -> None:
        self.bytes_in = self.bytes_out = 0
        self.gone = False
        self._receive, self._send = receive, send
        self._send_seconds = send_seconds
        self._outbox: deque[tuple[Message, Any, float]] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        self._room.set()

    async def accept(self, subprotocol: str | None) -> None:
        await self._send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": []})

    async def receive(self) -> Message | None:
        """The client's next message; None once it is gone."""
        message = await self._receive()
        if self.gone or message["type"] == "websocket.disconnect":  # or it takes nothing more: then it is not heard
            self.gone = True
            return None
        text = message.get("text")
        data: Message = text if text is not None else message["bytes"]
        self.bytes_in += len(data)
        return data

    def post(self, message: dict[str, Any] | bytes, owner: Any = None, seconds: float = 0.0) -> None:
        """Send this after all that was posted before. `seconds` is the sound in it."""
        if self.gone:
            return
        data = message if isinstance(message, bytes) else json.dumps(message, ensure_ascii=False)
        self._outbox.append((data, owner, seconds))
        if len(self._outbox) >= ROOM:
            self._room.clear()
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    def withdraw(self, owner: Any) -> float:
        """Do not send what this owner posted and still waits. Returns the seconds of sound in it."""
        kept = [each for each in self._outbox if each[1] is not owner]
        seconds = sum(each[2] for each in self._outbox if each[1] is owner)
        self._outbox = deque(kept)
        self._make_room()
        return seconds

    async def room(self) -> None:
        await self._room.wait()

    async def close(self, code: int, reason: str = "") -> None:
        """After what waits has been sent, if the client takes it soon."""
        try:
            async with asyncio.timeout(self._send_seconds):
                while self._writer is not None and not self.gone:
                    await asyncio.shield(self._writer)
                if not self.gone:
                    await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except (TimeoutError, OSError, RuntimeError):  # it left meanwhile, or has stopped reading
            pass
        await self.abandon()

    async def abandon(self) -> None:
        """Nothing more is sent."""
        self.gone = True
        self._outbox.clear()
        self._room.set()
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)

    async def _write(self) -> None:
        try:
            while self._outbox:
                data, _, _ = self._outbox.popleft()
                field = "text" if isinstance(data, str) else "bytes"
                await asyncio.wait_for(self._send({"type": "websocket.send", field: data}), self._send_seconds)
                self.bytes_out += len(data)
                self._make_room()
        except (TimeoutError, OSError, RuntimeError):
            self.gone = True
            self._outbox.clear()
            self._room.set()
        finally:
            self._writer = None

    def _make_room(self) -> None:
        if len(self._outbox) < ROOM:
            self._room.set()


async def deny(send: Send, scope: Scope, status: int, headers: dict[str, str], body: bytes) -> None:
    """Answer a handshake with an HTTP error instead."""
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    raw.append((b"content-length", str(len(body)).encode()))
    await send({"type": "websocket.http.response.start", "status": status, "headers": raw})
    await send({"type": "websocket.http.response.body", "body": body})


class LiveProtocol(WebSocketsSansIOProtocol):
    """Cuts off a client that answers no ping: closing politely would wait for it to read, for ever."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = logging.getLogger("uvicorn.error.websockets")
        self.logger.setLevel(logging.WARNING)  # it would log every address with its query, and that may hold a token

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.transport.abort()
