"""The tiny vocoder: seeded random weights in the published weight-norm layout, for tests. It hums, and no more."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

SEED = 1717
NUM_UNITS = 100
CONFIG: dict[str, Any] = {
    "upsample_rates": [5, 4, 4, 2, 2],
    "upsample_kernel_sizes": [11, 8, 8, 4, 4],
    "upsample_initial_channel": 32,
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "num_embeddings": NUM_UNITS,
    "embedding_dim": 16,
    "model_in_dim": 16,
    "code_hop_size": 320,
    "sampling_rate": 16000,
    "f0": False,
    "dur_predictor_params": {
        "encoder_embed_dim": 16,
        "var_pred_hidden_dim": 24,
        "var_pred_kernel_size": 3,
        "var_pred_dropout": 0.5,
    },
}


def write(directory: Path) -> None:
    """Write config.json and g_00000000 into an existing, empty directory."""
    (directory / "config.json").write_text(json.dumps(CONFIG, indent=2))
    generator = np.random.default_rng(SEED)
    weights = {}
    for name, shape, mean, std in parameters():
        values = generator.standard_normal(shape, dtype=np.float32) * np.float32(std) + np.float32(mean)
        weights[name] = torch.from_numpy(values)
    torch.save({"generator": weights}, directory / "g_00000000")


def parameters() -> Iterator[tuple[str, tuple[int, ...], float, float]]:
    """Name, shape, mean and deviation of every tensor, in a fixed order."""
    width, channels = CONFIG["model_in_dim"], CONFIG["upsample_initial_channel"]
    yield "dict.weight", (NUM_UNITS, width), 0.0, 1.0
    yield from _durations(width, CONFIG["dur_predictor_params"]["var_pred_hidden_dim"])
    yield from _convolution("conv_pre", (channels, width, 7), channels, 1.0)
    blocks = 0
    for i, kernel in enumerate(CONFIG["upsample_kernel_sizes"]):
        yield from _convolution(f"ups.{i}", (channels, channels // 2, kernel), channels // 2, 1.6)
        channels //= 2
        for size in CONFIG["resblock_kernel_sizes"]:
            for name in (f"convs{side}.{m}" for side in (1, 2) for m in range(3)):
                yield from _convolution(f"resblocks.{blocks}.{name}", (channels, channels, size), channels, 0.6)
            blocks += 1
    yield from _convolution("conv_post", (1, channels, 7), 1, 0.25)


def _convolution(name: str, shape: tuple[int, ...], num_out: int, gain: float) -> Iterator:
    yield f"{name}.bias", (num_out,), 0.0, 0.05
    yield f"{name}.weight_g", (shape[0], 1, 1), gain, 0.1 * gain
    yield f"{name}.weight_v", shape, 0.0, 1.0


def _durations(width: int, hidden: int) -> Iterator:
    for name, size in (("conv1", width), ("conv2", hidden)):
        yield f"dur_predictor.{name}.0.weight", (hidden, size, 3), 0.0, 1.5 / (size * 3) ** 0.5
        yield f"dur_predictor.{name}.0.bias", (hidden,), 0.0, 0.05
    for name in ("ln1", "ln2"):
        yield f"dur_predictor.{name}.weight", (hidden,), 1.0, 0.1
        yield f"dur_predictor.{name}.bias", (hidden,), 0.0, 0.05
    yield "dur_predictor.proj.weight", (1, hidden), 0.0, 0.7 / hidden**0.5
    yield "dur_predictor.proj.bias", (1,), 1.15, 0.0
