"""What the host knows and a step needs, rows, lengths, settings, onto the device without waiting for it.

A tensor made of a list on a GPU copies from pageable memory: the host then waits until the device has done all it was
given before, every step. From pinned memory nothing waits; torch keeps the block until the copy is done.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def feed(values: Sequence[float], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """(n,) on the device: what torch.tensor gives there."""
    host = torch.tensor(values, dtype=dtype)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
