"""WS /v1/realtime: OpenAI's Realtime protocol over one socket a conversation. docs/protocol.md has its events.

    realtime = Realtime(registry, sessions, api_key)
    app.router.routes.append(WebSocketRoute("/v1/realtime", realtime))

Knows who may connect, and why and how a socket closes; what is said on it, dialogue.py knows.
"""

import asyncio
import hmac
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from starlette.datastructures import Headers, QueryParams
from starlette.types import Receive, Scope, Send

from omni.serve.dialogue import Dialogue
from omni.serve.errors import (
    Busy,
    DeadlineExceeded,
    Draining,
    Forbidden,
    OmniError,
    SessionTaken,
    StoreLost,
    Unauthorized,
    UnknownModel,
)
from omni.serve.hearing import Hearing
from omni.serve.live_socket import LiveSocket, deny
from omni.serve.registry import RETRY_SECONDS, Registry, failure
from omni.serve.sessions import Sessions
from omni.serve.surface import error_body, error_headers

logger = logging.getLogger(__name__)

SUBPROTOCOL = "realtime"
KEY_SUBPROTOCOL = "openai-insecure-api-key."  # how a browser, which sends no header of its own, sends the key
LOOPBACK = ("localhost", "127.0.0.1", "::1")
LEFT, AGAINST_THE_RULES, OUR_MISTAKE, RESTART, TRY_LATER = 1000, 1008, 1011, 1012, 1013  # as RFC 6455 has them


class Realtime:
    """An ASGI application for one route. One for all sockets of a controller."""

    def __init__(self, registry: Registry, sessions: Sessions, api_key: str | None = None) -> None:
        self.registry, self.sessions, self.config = registry, sessions, registry.config
        self.hearing = Hearing()
        self._api_key = api_key
        self._origins = {each.strip().rstrip("/") for each in self.config.allowed_origins.split(",") if each.strip()}

    def close(self) -> None:
        self.hearing.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "websocket.connect", "a socket begins with its handshake"
        try:
            self._check(scope)
        except OmniError as exc:
            failed = failure(exc)
            await deny(send, scope, failed.status, error_headers(failed), error_body(failed, exc.param))
            return
        socket = LiveSocket(receive, send, send_seconds=self.config.client_deadline)
        await socket.accept(SUBPROTOCOL if SUBPROTOCOL in scope["subprotocols"] else None)
        await self._converse(socket)

    # --- who may connect ----------------------------------------------------------------------------------------------

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._api_key and not self._has_key(headers, scope["subprotocols"]):
            raise Unauthorized(
                f"A valid key is needed: 'Authorization: Bearer KEY', or the subprotocol '{KEY_SUBPROTOCOL}KEY'."
            )
        if not self._may_come_from(headers.get("origin"), headers.get("host", "")):
            raise Forbidden(
                f"Pages of {str(headers.get('origin'))[:200]!r} may not connect here; --allowed-origins names who may.",
            )
        model = QueryParams(scope["query_string"]).get("model")
        if model not in (None, self.config.model_name):
            raise UnknownModel(
                f"There is no model {str(model)[:100]!r} here. Select {self.config.model_name!r}.", param="model"
            )

    def _has_key(self, headers: Headers, subprotocols: list[str]) -> bool:
        assert self._api_key is not None, "without a key there is no check"
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = [key.strip()] if scheme.lower() == "bearer" else []
        given += [each.removeprefix(KEY_SUBPROTOCOL) for each in subprotocols if each.startswith(KEY_SUBPROTOCOL)]
        expected = self._api_key.encode()
        return any(hmac.compare_digest(each.encode("utf-8", "surrogateescape"), expected) for each in given)

    def _may_come_from(self, origin: str | None, host: str) -> bool:
        """Only browsers name an origin. Theirs must be on this machine, our own, or allowed: a key is in no cookie,
        but without a key any page that a user visits could talk here."""
        if origin is None or "*" in self._origins or origin.rstrip("/") in self._origins:
            return True
        try:
            name = urlsplit(origin).hostname
        except ValueError:
            return False
        return name is not None and (name in LOOPBACK or name == urlsplit(f"//{host}").hostname)

    # --- one conversation ---------------------------------------------------------------------------------------------

    async def _converse(self, socket: LiveSocket) -> None:
        dialogue = Dialogue(
            self.registry, self.hearing, self.sessions, post=socket.post, withdraw=socket.withdraw, room=socket.room
        )
        code, reason = LEFT, ""
        try:
            with self._place(dialogue):
                await dialogue.open()
                reason = await self._talk(socket, dialogue)
        except Exception as exc:
            code, reason = _code_of(exc), failure(exc).code
            dialogue.complain(exc)
        finally:
            await dialogue.close("The client left." if socket.gone else "The conversation ended.")
            await socket.close(code, reason)

    @contextmanager
    def _place(self, dialogue: Dialogue) -> Iterator[None]:
        """One of the places, given back at the end."""
        registry = self.registry
        if registry.draining:
            raise Draining("This controller is shutting down: connect again.", retry_after=RETRY_SECONDS)
        if len(registry.sockets) >= self.config.max_sockets:
            raise Busy(f"{self.config.max_sockets} conversations are open, the limit.", retry_after=RETRY_SECONDS)
        registry.join(dialogue)
        try:
            yield
        finally:
            registry.part(dialogue)

    async def _talk(self, socket: LiveSocket, dialogue: Dialogue) -> str:
        """Until the client leaves, or says nothing for too long. Raises the error that ends it otherwise."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.config.conversation_deadline
        try:
            async with asyncio.timeout(None) as patience:
                dialogue.when_leaving(lambda: patience.reschedule(loop.time()))
                while True:
                    patience.reschedule(min(loop.time() + self.config.idle_deadline, end))
                    message = await socket.receive()
                    if message is None:
                        return ""
                    await socket.room()  # who does not read is not listened to
                    await dialogue.hear(message)
        except TimeoutError:
            if dialogue.is_taken:
                raise SessionTaken("Another connection has resumed this session.") from None
            if dialogue.left:
                raise Draining("This controller is shutting down: connect again.", retry_after=RETRY_SECONDS) from None
            if loop.time() >= end:
                limit = self.config.conversation_deadline
                raise DeadlineExceeded(f"The session lasted {limit:g} s, the limit.", code="session_expired") from None
            return "idle"


def _code_of(exc: Exception) -> int:
    codes: dict[type[Exception], int] = {
        Busy: TRY_LATER,
        StoreLost: TRY_LATER,
        Draining: RESTART,
        DeadlineExceeded: AGAINST_THE_RULES,
        SessionTaken: AGAINST_THE_RULES,
    }
    return codes.get(type(exc), OUR_MISTAKE)
