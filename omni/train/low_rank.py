"""Low-rank deltas of an LLM's linear layers: trained beside it, kept apart from it, merged where it serves.

deltas = add_deltas(llm, rank=32)
optimizer = AdamW(low_rank(deltas))
save_deltas(deltas, folder / "llm_delta.safetensors", torch.bfloat16)     # omni.model.mini merges it
"""

import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from omni.train import keep


class LowRank(nn.Module):
    """linear(x) + scale · B A x, only A and B trained. B starts at zero: at first nothing changes."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.linear, self.scale = linear, scale
        self.lora_a = nn.Parameter(torch.randn(rank, linear.in_features) / math.sqrt(linear.in_features))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(x, self.lora_a.to(x.dtype))
        return self.linear(x) + F.linear(low, self.lora_b.to(x.dtype)) * self.scale


def add_deltas(llm: LlamaForCausalLM, rank: int) -> dict[str, LowRank]:
    """Put a LowRank around every linear layer of the blocks; returns them by name."""
    deltas = {}
    for name, module in list(llm.named_modules()):
        if isinstance(module, nn.Linear) and ".layers." in name:
            parent, _, child = name.rpartition(".")
            deltas[name] = LowRank(module, rank, scale=2.0 / math.sqrt(rank))
            setattr(llm.get_submodule(parent), child, deltas[name])
    return deltas


def low_rank(deltas: dict[str, LowRank]) -> list[nn.Parameter]:
    return [parameter for delta in deltas.values() for parameter in (delta.lora_a, delta.lora_b)]


def save_deltas(deltas: dict[str, LowRank], file: Path, dtype: torch.dtype) -> None:
    """As mini.merge reads them: NAME.lora_a (r, in), NAME.lora_b (out, r), and their common scale as metadata."""
    tensors: dict[str, Tensor] = {}
    for name, delta in deltas.items():
        tensors |= {
            f"{name}.lora_a": delta.lora_a.detach().to(dtype),
            f"{name}.lora_b": delta.lora_b.detach().to(dtype),
        }
    scale = next(iter(deltas.values())).scale
    keep.tensors(file, tensors, {"scale": repr(scale)})


def load_deltas(deltas: dict[str, LowRank], file: Path) -> None:
    tensors = load_file(file)
    for name, delta in deltas.items():
        for part in ("lora_a", "lora_b"):
            getattr(delta, part).data.copy_(tensors[f"{name}.{part}"])


def merge(deltas: dict[str, LowRank], llm: LlamaForCausalLM, file: Path) -> None:
    """Add a file's deltas to the layers that they lie around, and put those back: nothing more to compute."""
    load_deltas(deltas, file)
    for name, delta in deltas.items():
        delta.linear.weight.data += (delta.scale * (delta.lora_b @ delta.lora_a)).to(delta.linear.weight.dtype)
        parent, _, child = name.rpartition(".")
        setattr(llm.get_submodule(parent), child, delta.linear)
