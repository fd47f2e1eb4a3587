"""Files that appear whole or not at all, so that a run killed at any point leaves the last good one.

keep.tensors(path, {"weight": x}, {"scale": "2.0"})
keep.state(path, {"model": model.state_dict(), "steps": 100})
state = torch.load(path, weights_only=True)
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor


def tensors(path: Path, found: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    whole(path, lambda partial: save_file(found, partial, metadata))


def state(path: Path, found: dict[str, Any]) -> None:
    whole(path, lambda partial: torch.save(found, partial))


def text(path: Path, content: str) -> None:
    whole(path, lambda partial: partial.write_text(content))


def whole(path: Path, write: Callable[[Path], object]) -> None:
    """`write` fills a file beside `path`, which then takes its place in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
