"""A browser's WebSocket → the controller's /v1/realtime, and back. Adds the key here, so that no browser ever has it.

    app.add_api_websocket_route("/live", LiveProxy("http://127.0.0.1:8000", api_key).endpoint)

Knows nothing of what is said: messages pass whole, untouched, in order, one at a time each way, so a side that does not
read holds the other back instead of filling this process. When one end closes, the other closes with the same code and
reason. What the browser could not be told in a refused handshake is told as a close code: 1013 the cluster or this page
is full, 1012 it is restarting, 1008 it refuses, 1014 nobody answers there.
"""

import asyncio
import json
import logging
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.frames import EXTERNAL_CLOSE_CODES

logger = logging.getLogger(__name__)

MAX_SOCKETS = 512  # of all browsers together
MAX_MESSAGE_BYTES = 16 * 2**20  # the controller has its own, smaller limit
QUEUED_MESSAGES = 8  # from the controller, read ahead of the browser
CONNECT_SECONDS = 5.0
CLOSE_SECONDS = 2.0
STALLED_SECONDS = 60.0  # one message that cannot be handed on for so long: that end has gone

GOING_AWAY, POLICY, INTERNAL, RESTARTING, FULL, BAD_GATEWAY = 1001, 1008, 1011, 1012, 1013, 1014
CODES = {429: FULL, 503: FULL}  # of a refused handshake, by HTTP status
Closing = tuple[int, str]  # code and reason


class LiveProxy:
    """All live sockets of one page server; `opened` and `closed` count the pairs, `live` those in between."""

    def __init__(self, controller: str, api_key: str | None = None, *, max_sockets: int = MAX_SOCKETS) -> None:
        scheme, rest = controller.rstrip("/").split("://", 1)
        self._url = f"{'wss' if scheme == 'https' else 'ws'}://{rest}/v1/realtime"
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._max_sockets = max_sockets
        self.opened = self.closed = 0

    @property
    def live(self) -> int:
        return self.opened - self.closed

    async def endpoint(self, browser: WebSocket) -> None:
        if not same_origin(browser.headers):
            await browser.close(POLICY)  # before it is accepted: HTTP 403
            return
        if self.live >= self._max_sockets:
            await refuse(browser, FULL, "This page serves as many visitors as it can. Try again in a moment.")
            return
        self.opened += 1
        try:
            await self._pass(browser)
        finally:
            self.closed += 1

    async def _pass(self, browser: WebSocket) -> None:
        try:
            controller = await self._connect(browser.url.query)
        except (OSError, InvalidHandshake, TimeoutError) as exc:
            await refuse(browser, *why(exc))
            return
        closing: Closing = (INTERNAL, "")
        try:
            await browser.accept()
            closing = await first_to_close(browser, controller)
        except WebSocketDisconnect as gone:
            closing = (gone.code, "")
        finally:
            code, reason = sendable(*closing)
            await asyncio.gather(controller.close(code, reason), hang_up(browser, code, reason))

    async def _connect(self, query: str) -> ClientConnection:
        return await connect(
            f"{self._url}?{query}" if query else self._url,
            additional_headers=self._headers,
            compression=None,  # PCM does not shrink, and waiting for more of it would cost time
            proxy=None,  # a cluster is named by its own address
            open_timeout=CONNECT_SECONDS,
            close_timeout=CLOSE_SECONDS,
            max_size=MAX_MESSAGE_BYTES,
            max_queue=QUEUED_MESSAGES,
        )


def same_origin(headers: Headers) -> bool:
    """Whether a browser asks from our own page: any site may open a socket, and ours carries a key."""
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc in (headers.get("host"), headers.get("x-forwarded-host"))


async def first_to_close(browser: WebSocket, controller: ClientConnection) -> Closing:
    """Carry messages both ways until one end closes; its code and reason."""
    ways = [asyncio.ensure_future(way(browser, controller)) for way in (to_controller, to_browser)]
    try:
        done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def to_controller(browser: WebSocket, controller: ClientConnection) -> Closing:
    try:
        while True:
            message = await browser.receive()
            if message["type"] == "websocket.disconnect":
                return message.get("code") or GOING_AWAY, message.get("reason") or ""
            text = message.get("text")
            async with asyncio.timeout(STALLED_SECONDS):
                await controller.send(message["bytes"] if text is None else text)
    except (ConnectionClosed, TimeoutError) as exc:
        return how(exc)


async def to_browser(browser: WebSocket, controller: ClientConnection) -> Closing:
    try:
        while True:
            message = await controller.recv()
            async with asyncio.timeout(STALLED_SECONDS):
                await (browser.send_text(message) if isinstance(message, str) else browser.send_bytes(message))
    except (ConnectionClosed, TimeoutError) as exc:
        return how(exc)
    except WebSocketDisconnect as gone:
        return gone.code, ""


def how(exc: ConnectionClosed | TimeoutError) -> Closing:
    if isinstance(exc, ConnectionClosed) and exc.rcvd is not None:
        return exc.rcvd.code, exc.rcvd.reason
    return BAD_GATEWAY, "The line to the controller broke."


def sendable(code: int, reason: str) -> Closing:
    """1005 and 1006 only say that no code came; they may not be sent."""
    return (code if code in EXTERNAL_CLOSE_CODES or 3000 <= code < 5000 else GOING_AWAY), reason


def why(exc: Exception) -> Closing:
    """A handshake that failed, as a close code and words for the visitor."""
    if not isinstance(exc, InvalidStatus):
        logger.warning("the controller does not answer: %s", exc or type(exc).__name__)
        return BAD_GATEWAY, "The controller does not answer."
    status = exc.response.status_code
    try:
        error = json.loads(exc.response.body or b"")["error"]
        code, words = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        code, words = "", f"The controller refuses with HTTP {status}."
    if code == "draining":
        return RESTARTING, words
    if status == 404 and not code:
        words = "This controller holds no live conversations."
    return CODES.get(status, POLICY if status < 500 else BAD_GATEWAY), words


async def refuse(browser: WebSocket, code: int, reason: str) -> None:
    """Accept and close: a script is told a close code, but nothing of a handshake's failure."""
    await browser.accept()
    await hang_up(browser, code, reason)


async def hang_up(browser: WebSocket, code: int, reason: str) -> None:
    with suppress(RuntimeError, WebSocketDisconnect):  # it has closed already
        await browser.close(code, reason.encode()[:120].decode(errors="ignore"))  # a control frame holds 123 bytes
