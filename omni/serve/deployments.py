"""The two worker deployments on a running Ray cluster: made, scaled, watched. Placing and restarting is Ray Serve's.

A machine offers places for workers as Ray resources named by role ("model", "vocoder"), one unit a worker; that is how
the two kinds scale apart, and how `omni join` adds places for one kind only.
"""

from collections.abc import Mapping
from typing import Any

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.schema import LoggingConfig

from omni.serve.cluster import Kind
from omni.serve.config import ServeConfig
from omni.serve.model_worker import ModelWorker
from omni.serve.ray_cluster import DEPLOYMENTS
from omni.serve.vocoder_worker import VocoderWorker

HEALTH_PERIOD = 2.0  # seconds between health checks; a replica that fails them is replaced
HEALTH_TIMEOUT = 10.0
STATS_PERIOD = 1.0  # how fresh the load in /v1/cluster is


class WorkersFailed(RuntimeError):
    """The workers do not start; the message has Serve's reason."""


def start(config: ServeConfig) -> None:
    """Blocks until all workers are ready."""
    serve.start(proxy_location="Disabled", logging_config=LoggingConfig(log_level="WARNING"))
    scale(config, {"model": config.model_workers, "vocoder": config.vocoder_workers}, wait=True)


def scale(config: ServeConfig, numbers: Mapping[Kind, int], *, wait: bool = False) -> None:
    """Have this many workers of each kind. Those that stay are not touched."""
    targets = [
        serve.RunTarget(_deployment(config, kind, number).bind(config), name=DEPLOYMENTS[kind], route_prefix=None)
        for kind, number in numbers.items()
    ]
    try:
        serve.run_many(targets, wait_for_applications_running=wait)
    except RuntimeError as exc:
        raise WorkersFailed(f"{exc}\n{problems()}".strip()) from exc


def places() -> dict[Kind, int]:
    """How many workers of each kind the cluster's machines have room for."""
    resources = ray.cluster_resources()
    return {"model": int(resources.get("model", 0)), "vocoder": int(resources.get("vocoder", 0))}


def problems() -> str:
    """What Serve says of applications that are not running."""
    applications = serve.status().applications.values()
    messages = [deployment.message for each in applications for deployment in each.deployments.values()]
    return "\n".join(message for message in messages if message)


def ready() -> dict[str, int]:
    """Deployment name → its running replicas."""
    return {
        name: sum(number for state, number in deployment.replica_states.items() if state == "RUNNING")
        for each in serve.status().applications.values()
        for name, deployment in each.deployments.items()
    }


def _deployment(config: ServeConfig, kind: Kind, number: int) -> Any:
    worker, at_once, gpus = {
        "model": (ModelWorker, config.slots + config.waiting, config.model_gpus),
        "vocoder": (VocoderWorker, 8 * config.vocoder_batch, config.vocoder_gpus),
    }[kind]
    return serve.deployment(
        worker,
        name=DEPLOYMENTS[kind],
        num_replicas=number,
        ray_actor_options={"num_cpus": 0, "num_gpus": gpus, "resources": {kind: 1}},
        max_ongoing_requests=at_once + 8,  # so that the worker itself says busy, at once and with a reason
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=config.drain_deadline,
        health_check_period_s=HEALTH_PERIOD,
        health_check_timeout_s=HEALTH_TIMEOUT,
        request_router_config=RequestRouterConfig(
            request_router_class="omni.serve.router:LeastBusy", request_routing_stats_period_s=STATS_PERIOD
        ),
    )
