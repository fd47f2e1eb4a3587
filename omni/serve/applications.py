"""The two worker deployments as applications of a Ray Serve config file, such as KubeRay's serveConfigV2.

    applications:
      - name: ModelWorker
        import_path: omni.serve.applications:model
        args: {config: /etc/omni/config.json}
        deployments: [{name: ModelWorker, num_replicas: 2}]

Where Ray's own tools deploy, these stand in for deployments.start(); `omni up` does not use them.
"""

from ray.serve import Application

from omni.serve import deployments
from omni.serve.config import ServeConfig


def model(args: dict[str, str]) -> Application:
    config = ServeConfig.read(args["config"])
    return deployments.application(config, "model", config.model_workers)


def vocoder(args: dict[str, str]) -> Application:
    config = ServeConfig.read(args["config"])
    return deployments.application(config, "vocoder", config.vocoder_workers)
