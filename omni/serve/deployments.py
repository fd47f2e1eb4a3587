"""The two worker deployments on a running Ray cluster: made, scaled, watched. Placing and restarting is Ray Serve's.

A machine offers places for workers as Ray resources named by role ("model", "vocoder"), one unit a worker; that is how
the two kinds scale apart, and how `omni join` adds places for one kind only.
"""

from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray import serve
from ray.serve._private.common import DeploymentID
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
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


Load = Callable[[ServeConfig], Any]  # what a worker computes with, made in its process


def start(config: ServeConfig, numbers: Mapping[Kind, int], loads: Mapping[Kind, Load] | None = None) -> None:
    """Ask for this many workers of each kind. They are there once `loaded` says so."""
    serve.start(proxy_location="Disabled", logging_config=LoggingConfig(log_level="WARNING"))
    targets = [
        serve.RunTarget(
            application(config, kind, number, (loads or {}).get(kind)),
            name=DEPLOYMENTS[kind],
            route_prefix=None,
            external_scaler_enabled=True,
        )
        for kind, number in numbers.items()
    ]
    serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def scale(numbers: Mapping[Kind, int]) -> None:
    """Have this many workers of each kind from now on. Those that stay are not touched.

    Deploying again would replace them all: Serve takes every deployment made in code for a new version of it.
    """
    controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    for kind, number in numbers.items():
        deployment = DeploymentID(name=DEPLOYMENTS[kind], app_name=DEPLOYMENTS[kind])
        ray.get(controller.update_deployment_replicas.remote(deployment, number))


def loaded(numbers: Mapping[Kind, int]) -> bool:
    """All these workers take turns. Raises WorkersFailed once Serve has given up starting them."""
    applications = serve.status().applications
    for kind, number in numbers.items():
        application = applications.get(DEPLOYMENTS[kind])
        if application is None:
            return False
        if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            reasons = [application.message, *(each.message for each in application.deployments.values())]
            raise WorkersFailed("\n".join(reason for reason in reasons if reason))
        states = [pair for each in application.deployments.values() for pair in each.replica_states.items()]
        if sum(count for state, count in states if state == "RUNNING") < number:
            return False
    return True


def places() -> dict[Kind, int]:
    """How many workers of each kind the cluster's machines have room for."""
    resources = ray.cluster_resources()
    return {"model": int(resources.get("model", 0)), "vocoder": int(resources.get("vocoder", 0))}


def application(config: ServeConfig, kind: Kind, number: int, load: Load | None = None) -> serve.Application:
    """This many workers of one kind, to be run under the name DEPLOYMENTS[kind]. `load`: see its worker."""
    worker, at_once, gpus = {
        "model": (ModelWorker, config.slots + config.waiting, config.model_gpus),
        "vocoder": (VocoderWorker, 8 * config.vocoder_batch, config.vocoder_gpus),
    }[kind]
    router: dict[str, Any] = {
        "request_router_class": "omni.serve.router:LeastBusy",
        "request_routing_stats_period_s": STATS_PERIOD,
    }
    deployed = serve.deployment(
        name=DEPLOYMENTS[kind],
        num_replicas=number,
        ray_actor_options={"num_cpus": 0, "num_gpus": gpus, "resources": {kind: 1}},
        max_ongoing_requests=at_once + 8,  # so that the worker itself says busy, at once and with a reason
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=config.drain_deadline,
        health_check_period_s=HEALTH_PERIOD,
        health_check_timeout_s=HEALTH_TIMEOUT,
        request_router_config=RequestRouterConfig(**router),
    )(worker)
    return deployed.bind(config, load=load)
