"""What both ways to ask have in common: one exchange, one live turn, and an error for every way it can go wrong.

    class TurnsApi(Surface):
        async def answer(self, exchange, live): ...       # read, check, answer, send; raise whatever goes wrong
        def last_words(self, exchange, failed) -> bytes: ...   # an error after the response has started

An error before the first event has its HTTP status; after it, it is the stream's last event.
"""

import asyncio
import json
from typing import ClassVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from omni.model import adaptors
from omni.serve.affinity import MAX_KEY
from omni.serve.config import ServeConfig
from omni.serve.errors import BadRequest, Cancelled, OmniError, UnknownAdaptor, UnknownModel, UploadTooSlow
from omni.serve.exchange import Exchange
from omni.serve.protocol import Failed
from omni.serve.registry import LiveTurn, Registry, failure, retry_after_header
from omni.serve.uploads import Uploads

SESSION_HEADER = "x-session-id"
NO_STORE = {"cache-control": "no-store", "x-accel-buffering": "no"}


class Surface:
    name: ClassVar[str]

    def __init__(self, registry: Registry, uploads: Uploads) -> None:
        self.registry, self.config, self.uploads = registry, registry.config, uploads

    async def endpoint(self, request: Request) -> Response:
        return _Answering(self)

    async def answer(self, exchange: Exchange, live: LiveTurn) -> None:
        raise NotImplementedError

    def last_words(self, exchange: Exchange, failed: Failed) -> bytes:
        raise NotImplementedError

    async def read(self, exchange: Exchange, live: LiveTurn, max_bytes: int) -> bytes:
        """The request's body, within all limits."""
        body = await exchange.read(max_bytes, self.config.upload_deadline, live.count_upload)
        live.complete()
        return body

    def check_model(self, name: str | None) -> None:
        if name is not None and name != self.config.model_name:
            ours = self.config.model_name
            raise UnknownModel(f"There is no model {name[:100]!r} here. Select {ours!r}.", param="model")

    def adaptor(self, name: str | None) -> str:
        """The one that was asked for; "" is the checkpoint's own."""
        check_adaptor(name, self.config)
        return name or ""

    def session_of(self, exchange: Exchange, named: str | None = None) -> str:
        """The client's own name for its conversation, so that one worker gets all of it; "" where it gives none."""
        key = named or exchange.headers.get(SESSION_HEADER, "")
        if len(key) > MAX_KEY:
            raise BadRequest(
                f"The conversation's name has {len(key)} characters; the limit is {MAX_KEY}.", code="too_long"
            )
        return key

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, send_seconds=self.config.client_deadline)
        live = self.registry.arrive(self.name, exchange)
        try:
            self.registry.admit()
            await self.answer(exchange, live)
        except asyncio.CancelledError:
            live.failed = failure(Cancelled("The server stopped."))
            raise
        except Exception as exc:
            live.failed = failed = failure(exc)
            await self._say(exchange, live, failed, param=getattr(exc, "param", None))
        finally:
            exchange.close()
            self.registry.leave(live)

    async def _say(self, exchange: Exchange, live: LiveTurn, failed: Failed, param: str | None) -> None:
        if exchange.started:
            await exchange.farewell(0, {}, self.last_words(exchange, failed))
            return
        body = error_body(failed, param)
        headers = error_headers(failed) | {"x-request-id": live.turn_id, "content-length": str(len(body))}
        if exchange.bytes_missing > 2 * self.config.max_upload_bytes or failed.status == UploadTooSlow.status:
            headers["connection"] = "close"  # a shorter rest is taken in and dropped: closing would cost the answer
        await exchange.farewell(failed.status, headers, body)


class _Answering(Response):
    """Hands the bare exchange to the surface, which reads, answers and watches for a leaving client."""

    def __init__(self, surface: Surface) -> None:
        super().__init__()
        self._surface = surface

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._surface.serve(scope, receive, send)


def check_adaptor(name: str | None, config: ServeConfig, param: str = "adaptor") -> None:
    try:
        adaptors.check(name or "", config.adaptors)
    except adaptors.UnknownAdaptor as exc:
        raise UnknownAdaptor(str(exc), param=param) from exc


def error_body(failed: Failed, param: str | None = None) -> bytes:
    """OpenAI's envelope, for every error of every route."""
    kind = "invalid_request_error" if failed.status < 500 else "server_error"
    error = {"message": failed.message, "type": kind, "param": param, "code": failed.code}
    return json.dumps({"error": error}, ensure_ascii=False).encode("utf-8", "backslashreplace")


def error_headers(failed: Failed) -> dict[str, str]:
    headers = {"content-type": "application/json"} | retry_after_header(failed)
    if failed.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def error_response(exc: OmniError) -> Response:
    failed = failure(exc)
    return Response(error_body(failed, exc.param), failed.status, error_headers(failed))


def invalid(exc: ValidationError, model: type[BaseModel]) -> BadRequest:
    """The first thing that is wrong, by the field's path as the client wrote it."""
    error = exc.errors(include_url=False, include_context=False, include_input=False)[0]
    path: list[str] = []
    after_index = False  # pydantic puts a union's tag behind an index; the client wrote no such thing
    for part in error["loc"]:
        if not after_index:
            path.append(str(part))
        after_index = isinstance(part, int)
    param = ".".join(path) or None
    if error["type"] == "json_invalid":
        return BadRequest(f"The body is not JSON: {error['msg'].removeprefix('Invalid JSON: ')}.", code="invalid_json")
    code = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}.get(
        error["type"], "invalid_value"
    )
    return BadRequest(f"{param or 'The request'}: {error['msg']}.", code=code, param=param)
