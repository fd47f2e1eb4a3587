"""The controller: the HTTP routes over a cluster. A FastAPI app that starts without torch, and its server that drains.

    app = make_app(config, cluster)          # any `cluster.Cluster`
    await serve(app, config)                 # until SIGINT or SIGTERM; live turns may end first

POST /v1/chat/completions   OpenAI's clients        GET /v1/models    GET /live    GET /metrics
POST /v1/turns              bytes in, events out    GET /v1/cluster   GET /ready   GET /openapi.json
WS   /v1/realtime           live conversations

Knows the routes and who may use them; what a turn is, turn.py knows, and when it ends, registry.py.
"""

import asyncio
import hmac
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from omni import __version__
from omni.serve.cluster import Cluster
from omni.serve.config import API_KEY_VARIABLE, ServeConfig
from omni.serve.errors import Internal, OmniError, Unauthorized
from omni.serve.events import FRAMES, JSON_LINES
from omni.serve.live_socket import LiveProtocol
from omni.serve.metrics import CONTENT_TYPE, Metrics
from omni.serve.openai_api import ChatRequest, OpenAIApi
from omni.serve.protocol import Failed
from omni.serve.realtime import Realtime
from omni.serve.registry import Registry
from omni.serve.sessions import Sessions
from omni.serve.stores import MemoryStore, Store
from omni.serve.surface import error_body, error_headers, error_response
from omni.serve.turns_api import TurnOptions, TurnsApi
from omni.serve.uploads import Uploads

logger = logging.getLogger(__name__)
OPEN_ROUTES = ("/live", "/ready")  # a probe carries no key


def make_app(
    config: ServeConfig, cluster: Cluster, *, api_key: str | None = None, store: Store | None = None
) -> FastAPI:
    """The routes over this cluster. With an api_key, every route but the probes asks for it as a bearer token."""
    if config.adaptors:
        logger.info("sessions may choose an adaptor: %s", ", ".join(config.adaptors))
    metrics = Metrics()
    registry = Registry(config, cluster, metrics)
    if store is None:
        store = MemoryStore(config.max_sessions, config.max_session_bytes)
    sessions = Sessions(config, store)
    uploads = Uploads(
        max_seconds=config.max_audio_seconds, max_bytes=config.max_upload_bytes, num_threads=config.upload_threads
    )

    realtime = Realtime(registry, sessions, api_key)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        uploads.close()
        await sessions.close()
        realtime.close()

    app = FastAPI(title="omni", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.registry, app.state.sessions = registry, sessions
    _add_turns(app, registry, uploads)
    app.router.routes.append(WebSocketRoute("/v1/realtime", realtime))
    _add_state(app, registry)
    _add_errors(app)
    if api_key:
        app.add_middleware(RequireKey, api_key=api_key)
    return app


async def serve(app: FastAPI, config: ServeConfig) -> None:
    """Serve until a signal comes; then take no new turns, let the live ones end, and return."""
    settings = server_settings(app, config, host=config.host, port=config.port)
    await DrainingServer(settings, app.state.registry, config.drain_deadline).serve()


def server_settings(app: FastAPI, config: ServeConfig, **more: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,  # handlers are the process' matter
        access_log=False,  # a turn has its own line
        server_header=False,
        ws=LiveProtocol,
        ws_max_size=config.max_message_bytes,
        ws_per_message_deflate=False,  # speech does not get smaller, and every socket would hold a window
        timeout_graceful_shutdown=5,
        **more,
    )


class DrainingServer(uvicorn.Server):
    """Goes on answering probes and live turns after the first signal; leaves at once after the second."""

    def __init__(self, config: uvicorn.Config, registry: Registry, drain_deadline: float) -> None:
        super().__init__(config)
        self._registry, self._drain_deadline = registry, drain_deadline
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._registry.draining or self._loop is None:
            super().handle_exit(sig, frame)
        else:
            self._registry.draining = True
            self._loop.call_soon_threadsafe(self._start_drain)

    def _start_drain(self) -> None:
        logger.info("draining: %d live turns have %g s", len(self._registry.live), self._drain_deadline)
        self._drain = asyncio.ensure_future(self._drain_and_leave())

    async def _drain_and_leave(self) -> None:
        try:
            await self._registry.drain(self._drain_deadline)
        finally:
            self.should_exit = True


class RequireKey:
    """Lets a request pass that carries the key as `Authorization: Bearer …`. Compares in constant time."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app, self._expected = app, api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_ROUTES or self._has_key(scope):
            await self._app(scope, receive, send)
            return
        error = Unauthorized("A valid key is needed: send it as 'Authorization: Bearer KEY'.")
        await error_response(error)(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        given = key.strip().encode("utf-8", "surrogateescape")
        return scheme.lower() == "bearer" and hmac.compare_digest(given, self._expected)


def api_key_from_environment() -> str | None:
    return os.environ.get(API_KEY_VARIABLE) or None


def _add_turns(app: FastAPI, registry: Registry, uploads: Uploads) -> None:
    chat, turns = OpenAIApi(registry, uploads), TurnsApi(registry, uploads)
    error = {"description": "OpenAI's envelope", "content": {"application/json": {"example": {"error": {}}}}}
    errors: dict[int | str, dict[str, Any]] = {"4XX": error, "5XX": error}
    streams: dict[int | str, dict[str, Any]] = {200: {"content": {FRAMES: {}, JSON_LINES: {}}}}
    chats: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}
    app.add_api_route(
        "/v1/chat/completions",
        chat.endpoint,
        methods=["POST"],
        responses=chats | errors,
        openapi_extra=_body("application/json", ChatRequest.model_json_schema()),
    )
    bytes_schema = {"type": "string", "format": "binary"}
    app.add_api_route(
        "/v1/turns",
        turns.endpoint,
        methods=["POST"],
        responses=streams | errors,
        openapi_extra=_body("application/octet-stream", bytes_schema) | {"parameters": _query_parameters()},
    )


def _add_state(app: FastAPI, registry: Registry) -> None:
    started = int(time.time())

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(registry.config, started)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != registry.config.model_name:
            raise HTTPException(404, f"There is no model {name[:100]!r} here.")
        return _model(registry.config, started)

    @app.get("/live")
    async def live() -> dict[str, Any]:
        return {"live": True}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        workers_ready = registry.cluster.ready()
        takes_turns = workers_ready and not registry.draining
        body = {"ready": takes_turns, "workers": workers_ready, "draining": registry.draining}
        return JSONResponse(body, 200 if takes_turns else 503, headers={} if takes_turns else {"retry-after": "1"})

    @app.get("/v1/cluster")
    async def cluster() -> dict[str, Any]:
        own = {"version": __version__, "model": registry.config.model_name, "live_turns": len(registry.live)}
        own |= {"max_turns": registry.config.max_turns, "draining": registry.draining}
        own["adaptors"] = list(registry.config.adaptors)
        return {"controller": own} | await registry.cluster.describe()

    @app.get("/metrics")
    async def metrics() -> Response:
        state = await registry.cluster.describe()
        for kind in ("model", "vocoder"):
            serving = sum(each["kind"] == kind and each["state"] == "ready" for each in state["workers"])
            registry.metrics.workers.labels(kind).set(serving)
        registry.metrics.ready.set(registry.cluster.ready() and not registry.draining)
        return Response(registry.metrics.text(), headers={"content-type": CONTENT_TYPE})


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def http_error(request: Request, exc: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(exc.status_code, "bad_request")
        failed = Failed(code, str(exc.detail), exc.status_code)
        return Response(error_body(failed), exc.status_code, {**(exc.headers or {}), **error_headers(failed)})

    @app.exception_handler(OmniError)
    async def omni_error(request: Request, exc: OmniError) -> Response:
        return error_response(exc)

    @app.exception_handler(Exception)
    async def our_mistake(request: Request, exc: Exception) -> Response:
        return error_response(Internal("Something went wrong here; the server's log has the details."))


def _model(config: ServeConfig, started: int) -> dict[str, Any]:
    about = {"id": config.model_name, "object": "model", "created": started, "owned_by": "omni"}
    return about | {"adaptors": list(config.adaptors)}


def _body(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def _query_parameters() -> list[dict[str, Any]]:
    properties = TurnOptions.model_json_schema()["properties"]
    return [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]
