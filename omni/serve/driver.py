"""The controller's process: a Ray driver that serves the HTTP app until it is told to end.

python -m omni.serve.driver CONFIG.json      # as `omni up` starts it; several may share one cluster
"""

import argparse
import asyncio
import logging
import os
import sys

from omni.serve.config import STORE_PASSWORD_VARIABLE, ServeConfig
from omni.serve.controller import api_key_from_environment, make_app, serve
from omni.serve.ray_cluster import RayCluster
from omni.serve.stores import open_store


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m omni.serve.driver", description="Serve the controller.")
    parser.add_argument("config", help="the cluster's configuration, a JSON file")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    config = ServeConfig.read(args.config)
    cluster = RayCluster.connect(config)
    try:
        asyncio.run(_serve(config, cluster))
    finally:
        cluster.close()
    return 0


async def _serve(config: ServeConfig, cluster: RayCluster) -> None:
    store = open_store(config, os.environ.get(STORE_PASSWORD_VARIABLE))
    await serve(make_app(config, cluster, api_key=api_key_from_environment(), store=store), config)


if __name__ == "__main__":
    sys.exit(main())
