"""How an answer is cut into chunks: the same in the cluster, in one process and in the benchmarks. No torch."""

from collections.abc import Mapping
from typing import Any

from omni.serve.config import ServeConfig
from omni.vocoder.streaming import ChunkPlanner


def planner(vocoder: Mapping[str, Any], settings: ServeConfig | type[ServeConfig] = ServeConfig) -> ChunkPlanner:
    """For a vocoder's config.json; the class gives the defaults."""
    return ChunkPlanner.of(
        vocoder, first_chunk=settings.first_chunk, chunk=settings.chunk, growth=settings.chunk_growth
    )
