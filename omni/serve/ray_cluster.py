"""`Cluster` over two Ray Serve deployments. Lives in the controller, which is a Ray driver; knows no turns' rules.

    cluster = RayCluster.connect(config)
    async for tokens in cluster.generate(request): ...
    reply = await cluster.vocode(turn_id, epoch, chunk)
    cluster.close()

Whatever Ray raises becomes an `OmniError` here: a dead or unreachable worker is WorkerLost, what a worker raised itself
comes through as it was.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from omni.serve import errors
from omni.serve.cluster import Kind
from omni.serve.config import ServeConfig
from omni.serve.protocol import ReadRequest, Tokens, TurnRequest
from omni.serve.ray_node import environment
from omni.serve.replicas import board
from omni.vocoder.streaming import Chunk, ChunkReply

logger = logging.getLogger(__name__)

DEPLOYMENTS: dict[Kind, str] = {"model": "ModelWorker", "vocoder": "VocoderWorker"}  # each is an application of its own
NAMESPACE = "omni"


def attach(config: ServeConfig) -> bool:
    """Make this process a driver of the running cluster. False: it is not there yet."""
    os.environ.update(environment(config.state_dir, config.ray_token_file))
    try:
        ray.init(address=config.ray_address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)
    except ConnectionError as exc:
        logger.info("the cluster at %s is not there yet: %s", config.ray_address, exc)
        ray.shutdown()
        return False
    return True


class RayCluster:
    def __init__(self, config: ServeConfig) -> None:
        self._generate, self._vocode = (serve.get_app_handle(DEPLOYMENTS[kind]) for kind in ("model", "vocoder"))
        self._read = self._generate.options(method_name="read")
        self._generate = self._generate.options(method_name="generate", stream=True)  # options() starts the router
        self._vocode = self._vocode.options(method_name="vocode")
        self._under_way: dict[tuple[Kind, str], list[str]] = {}  # (kind, turn) → request ids

    @classmethod
    def connect(cls, config: ServeConfig) -> "RayCluster":
        """Blocks for a second or two: before the event loop starts, or in a thread."""
        if not attach(config):
            raise ConnectionError(f"There is no cluster at {config.ray_address}.")
        return cls(config)

    def close(self) -> None:
        ray.shutdown()

    async def generate(self, request: TurnRequest) -> AsyncIterator[Tokens]:
        with self._call("model", request.turn_id, self._generate.remote(request)) as response:
            async for tokens in response:
                yield tokens

    async def read(self, request: ReadRequest) -> str:
        with self._call("model", request.turn_id, self._read.remote(request)) as response:
            return await response

    async def vocode(self, turn_id: str, epoch: int, chunk: Chunk) -> ChunkReply:
        with self._call("vocoder", turn_id, self._vocode.remote(turn_id, epoch, chunk)) as response:
            return await response

    def suspect(self, kind: Kind, turn_id: str) -> bool:
        taken = [board.suspect(request_id) for request_id in self._under_way.get((kind, turn_id), [])]
        return any(taken)

    async def describe(self) -> dict[str, Any]:
        workers = [
            {"kind": kind, "id": replica_id, "state": "silent" if board.is_suspect(replica_id) else "ready"}
            | {"node": replica.node_id, **(replica.routing_stats or {})}
            for kind, name in DEPLOYMENTS.items()
            for replica_id, replica in board.replicas(name).items()
        ]
        places = await asyncio.to_thread(ray.cluster_resources)
        return {"workers": workers, "wanted": {kind: int(places.get(kind, 0)) for kind in DEPLOYMENTS}}

    def ready(self) -> bool:
        return all(
            any(not board.is_suspect(replica_id) for replica_id in board.replicas(name))
            for name in DEPLOYMENTS.values()
        )

    @contextmanager
    def _call(self, kind: Kind, turn_id: str, response: Any) -> Iterator[Any]:
        """Book the call while it runs, translate what it raises, and end it at the worker if we leave early."""
        booked = self._under_way.setdefault((kind, turn_id), [])
        booked.append(response.request_id)
        ended = False
        try:
            yield response
            ended = True
        except asyncio.CancelledError:
            raise
        except RayTaskError as exc:
            ended = True
            raise _told_by_worker(kind, exc) from exc
        except (RayError, RayServeException) as exc:
            ended = True
            raise errors.WorkerLost(f"The {kind} worker is gone ({type(exc).__name__}).") from exc
        finally:
            if not ended:
                response.cancel()
            board.forget(response.request_id)
            booked.remove(response.request_id)
            if not booked:
                self._under_way.pop((kind, turn_id), None)


def _told_by_worker(kind: Kind, exc: RayTaskError) -> errors.OmniError:
    if isinstance(exc.cause, errors.OmniError):
        return exc.cause
    logger.error("a %s worker failed: %s", kind, exc)
    return errors.Internal(f"A {kind} worker failed with {type(exc.cause).__name__}.")
