"""Vocoders of any shape with seeded random weights, by the recipe of the goldens: each hums its own tune."""

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from omni.vocoder import checkpoint
from omni.vocoder.code_hifigan import CodeHiFiGAN
from omni.vocoder.source_filter import F0_SCALE, HALVES, SourceFilter
from omni.vocoder.streaming import SOURCE_FILTER

GOLDEN = Path(__file__).parents[1] / "golden" / "vocoder"
FULL_CONFIG: dict[str, Any] = json.loads((GOLDEN / "config_full.json").read_text())


def config(
    rates: list[int], kernels: list[int], resblock_kernels: list[int], dilations: list[list[int]], channels: int = 8
) -> dict[str, Any]:
    return {
        "upsample_rates": rates,
        "upsample_kernel_sizes": kernels,
        "upsample_initial_channel": channels * 2 ** len(rates),
        "resblock_kernel_sizes": resblock_kernels,
        "resblock_dilation_sizes": dilations,
        "num_embeddings": 30,
        "embedding_dim": 8,
        "model_in_dim": 8,
        "dur_predictor_params": {"encoder_embed_dim": 8, "var_pred_hidden_dim": 8, "var_pred_kernel_size": 3},
    }


CONFIGS = {
    "one-stage": config([3], [3], [3], [[1]]),
    "even-kernels": config([4, 2], [8, 4], [3, 5], [[1, 3], [1, 2, 3]], channels=4),
    "odd-kernels": config([5, 3], [11, 7], [3, 7, 11], [[1, 3, 5], [1, 3, 5], [1, 3, 5]], channels=2),
    "wide-kernels": config([2, 2, 2], [8, 6, 2], [5], [[4]], channels=2),
}


SOURCE_FILTERS: dict[str, dict[str, Any]] = {
    name: {
        "generator": SOURCE_FILTER,
        "num_embeddings": 30,
        "embedding_dim": 8,
        "code_hop_size": hop,
        "sampling_rate": 16_000,
        "dur_predictor_params": {"encoder_embed_dim": 8, "var_pred_hidden_dim": 8, "var_pred_kernel_size": 3},
        "prosody": {"width": 8, "hidden": 16, "reach": prosody},
        "decoder": {"width": 8, "hidden": 16, "reach": decoder},
    }
    for name, hop, prosody, decoder in (
        ("source-filter", 16, [[2, 1], [3, 0]], [[3, 1], [3, 2], [1, 0]]),
        ("narrow-source-filter", 10, [[0, 0]], [[1, 0]]),
        ("far-source-filter", 40, [[1, 4]], [[0, 5]]),
    )
}


@cache
def vocoder(name: str, seed: int = 0) -> CodeHiFiGAN | SourceFilter:
    """A shape by its name: one of CONFIGS or SOURCE_FILTERS, "tiny" (the golden checkpoint) or "full" (published)."""
    if name == "tiny":
        return checkpoint.load(GOLDEN / "tiny")
    if name in SOURCE_FILTERS:
        return source_filter(SOURCE_FILTERS[name], seed)
    model = CodeHiFiGAN(FULL_CONFIG if name == "full" else CONFIGS[name])
    model.load_state_dict(checkpoint.fold_weight_norm(weights(model, seed)))
    return model.eval().requires_grad_(False)


def source_filter(config: dict[str, Any], seed: int) -> SourceFilter:
    """Random weights, at a pitch of 120 Hz or so: voiced now and then, quiet, never still."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SourceFilter(config)
        head = model.prosody.head
        head.weight.data[:HALVES] *= 60 / F0_SCALE / head.weight.data[:HALVES].std() / 8**0.5
        head.bias.data[:HALVES] = 120 / F0_SCALE
        model.decoder.head.bias.data[0 : model.bins] -= 3.0
        model.decoder.head.bias.data[2 * model.bins : 3 * model.bins] -= 3.0
    model.prosody.double()  # as checkpoint.load has it
    return model.eval().requires_grad_(False)


def weights(model: CodeHiFiGAN, seed: int) -> dict[str, torch.Tensor]:
    """Seeded weights for `model`, in the published weight-norm layout."""
    shapes = {name: tuple(x.shape) for name, x in checkpoint.split_weight_norm(model.state_dict()).items()}
    return {name: torch.from_numpy(x) for name, x in _recipe().generate(shapes, seed).items()}


@cache
def _recipe() -> Any:
    spec = importlib.util.spec_from_file_location("vocoder_recipe", GOLDEN / "vocoder_recipe.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
