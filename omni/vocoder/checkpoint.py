"""A vocoder directory, config.json and g_*, in fairseq's layout ⇄ CodeHiFiGAN. Only tensors are unpickled.

Published weights are split by weight norm: w = g · v / |v|, the norm over all dimensions but the first.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omni.vocoder.code_hifigan import CodeHiFiGAN
from omni.vocoder.durations import UnitVocoder
from omni.vocoder.source_filter import SourceFilter
from omni.vocoder.streaming import SOURCE_FILTER


class VocoderCheckpointError(ValueError):
    """A vocoder directory is incomplete, or its weights do not fit its config.json."""


def load(directory: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> UnitVocoder:
    """directory → its vocoder in eval mode. `dtype` is CodeHiFiGAN's generator's.

    Durations are always decided in float32; source and filter compute in it, and their melody in float64.
    """
    directory = Path(directory)
    config = read_config(directory)
    if config.get("generator") == SOURCE_FILTER:
        model: UnitVocoder = SourceFilter(config)
    else:
        model = CodeHiFiGAN(config)
    try:
        model.load_state_dict(fold_weight_norm(read_weights(directory)))
    except RuntimeError as exc:
        raise VocoderCheckpointError(f"the weights in {directory} do not fit its config.json: {exc}") from exc
    if isinstance(model, CodeHiFiGAN):
        for part in (model.conv_pre, model.ups, model.resblocks, model.conv_post):
            part.to(dtype)
    else:
        model.prosody.double()
    return model.to(device).eval().requires_grad_(False)


def read_config(directory: Path) -> dict[str, Any]:
    try:
        return json.loads((directory / "config.json").read_text())
    except FileNotFoundError as exc:
        raise VocoderCheckpointError(f"{directory / 'config.json'} does not exist: is {directory} a vocoder?") from exc
    except json.JSONDecodeError as exc:
        raise VocoderCheckpointError(f"{directory / 'config.json'} is not JSON: {exc}") from exc


def read_weights(directory: Path) -> dict[str, Tensor]:
    """The published names, float32, of the newest g_* file."""
    files = sorted(directory.glob("g_*"))
    if not files:
        raise VocoderCheckpointError(f"{directory} holds no weights (a file named g_*).")
    weights = torch.load(files[-1], map_location="cpu", weights_only=True)["generator"]
    return {name: x.float() for name, x in weights.items()}


def save(
    model: UnitVocoder,
    config: dict[str, Any],
    directory: str | Path,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write `model` as the published layout has it: weight norm split up, {"generator": …} in g_00000000.pt."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = model.state_dict()
    if isinstance(model, CodeHiFiGAN):
        tensors = split_weight_norm(tensors)
    weights = {name: x.to(dtype).contiguous() for name, x in tensors.items()}
    torch.save({"generator": weights}, directory / "g_00000000.pt")


def fold_weight_norm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    folded = {name: x for name, x in weights.items() if not name.endswith(("weight_g", "weight_v"))}
    for name, g in weights.items():
        if name.endswith("weight_g"):
            v = weights[name.removesuffix("g") + "v"]
            folded[name.removesuffix("_g")] = v * (g / v.norm(dim=(1, 2), keepdim=True))
    return folded


def split_weight_norm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse, with v = w: every convolution of the generator, but not those of the duration predictor."""
    split = {}
    for name, x in weights.items():
        if name.endswith(".weight") and name.startswith(("conv_", "ups.", "resblocks.")):
            x = x.float()
            split[name + "_g"], split[name + "_v"] = x.norm(dim=(1, 2), keepdim=True), x
        else:
            split[name] = x
    return split
