"""One HTTP request and its response, whose client may leave at any moment. Knows ASGI; knows no turn.

body = await exchange.read(max_bytes, seconds)       # never reads more than it may
event = await exchange.unless_gone(work, seconds)    # work is cancelled the moment the client leaves
await exchange.start(200, {"content-type": "text/plain"})
await exchange.send(b"…")                            # waits for a slow reader, but not for ever
await exchange.finish()
"""

import asyncio
import math
from collections.abc import Callable, Mapping

from starlette.datastructures import Headers, QueryParams
from starlette.types import Receive, Scope, Send

from omni.serve.asker import FAREWELL_SECONDS, Asker
from omni.serve.errors import Cancelled, DeadlineExceeded, OmniError, TooLarge, UploadTooSlow


class Exchange(Asker):
    def __init__(self, scope: Scope, receive: Receive, send: Send, *, send_seconds: float) -> None:
        super().__init__()
        self.headers = Headers(scope=scope)
        self.query = QueryParams(scope["query_string"])
        self.started = False  # the status line is out: errors can only follow as events
        self._receive, self._send = receive, send
        self._send_seconds = send_seconds
        self._complete = False  # the whole body was read
        self._watcher: asyncio.Task[None] | None = None

    async def read(self, max_bytes: int, seconds: float, on_bytes: Callable[[int], None] = lambda _: None) -> bytes:
        """The request's body. `on_bytes` is told of every portion, and may refuse it by raising."""
        if self.bytes_missing > max_bytes and "content-length" in self.headers:
            raise TooLarge(f"The request has {self.bytes_missing} bytes; the limit is {max_bytes}.")
        body = bytearray()
        try:
            async with asyncio.timeout(seconds):
                while await self._read_more(body, on_bytes):
                    if len(body) > max_bytes:
                        raise TooLarge(f"The request has more than {max_bytes} bytes, the limit.")
            self._complete = True
        except TimeoutError as exc:
            raise UploadTooSlow(f"The request did not arrive within {seconds:g} s.") from exc
        if len(body) > max_bytes:
            raise TooLarge(f"The request has {len(body)} bytes; the limit is {max_bytes}.")
        self._watcher = asyncio.create_task(self._watch())
        return bytes(body)

    @property
    def bytes_missing(self) -> float:
        """Of the body, not yet taken in; infinite when the client did not say."""
        if self._complete:
            return 0
        declared = self.headers.get("content-length", "" if "transfer-encoding" in self.headers else "0")
        return int(declared) - self.bytes_in if declared.isdecimal() else math.inf

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._deliver({"type": "http.response.start", "status": status, "headers": raw})
        self.started = True

    async def send(self, data: bytes, *, last: bool = False) -> None:
        await self._deliver({"type": "http.response.body", "body": data, "more_body": not last})
        self.bytes_out += len(data)

    async def finish(self) -> None:
        await self.send(b"", last=True)

    async def farewell(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
        """The last words after an error, whether the response has started or not. A client that left hears nothing."""
        if self._watcher is not None:
            self._watcher.cancel()
        self.forget_interruption()  # a stopped turn still says why
        self._send_seconds = min(self._send_seconds, FAREWELL_SECONDS)
        try:
            if not self.started:
                await self.start(status, headers)
            await self.send(data, last=True)
        except (OmniError, OSError):
            pass

    def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()

    async def _read_more(self, body: bytearray, on_bytes: Callable[[int], None]) -> bool:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("The client left while its question was on the way.")
        portion = message.get("body", b"")
        on_bytes(len(portion))
        self.bytes_in += len(portion)
        body += portion
        return message.get("more_body", False)

    async def _deliver(self, message: dict) -> None:
        try:
            await self.unless_gone(self._send(message), self._send_seconds)
        except DeadlineExceeded as exc:
            raise Cancelled(f"The client read nothing for {self._send_seconds:g} s.", code="client_too_slow") from exc
        except OSError as exc:
            raise Cancelled("The client left.") from exc

    async def _watch(self) -> None:
        """After the body, the only thing a client can say is that it is gone."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.interrupt(Cancelled("The client left."))
