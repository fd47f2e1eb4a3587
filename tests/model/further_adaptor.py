"""A further adaptor of seeded random weights, put into a checkpoint's folder as a training exports one."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from omni.model import config as configs
from omni.model.adaptor import Adaptor


def tensors(directory: Path, seed: int) -> dict[str, Tensor]:
    """In the shape that the checkpoint's config.json says, but for tokens: those are ids, 12 of them and silence."""
    config = configs.read(directory)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = {name: x.half() for name, x in Adaptor(replace(config, adaptor_tokens=0)).state_dict().items()}
        if config.adaptor_tokens:
            made["tokens.ids"] = torch.randperm(config.vocab_size)[:13].int()
            made["tokens.blank"] = torch.nn.functional.normalize(torch.randn(config.llm.width), dim=0).half()
    return made


def put(directory: Path, name: str, seed: int) -> Path:
    """Its folder."""
    folder = directory / "adaptors" / name
    folder.mkdir(parents=True)
    save_file(tensors(directory, seed), folder / "adaptor.safetensors")
    return folder
