"""Prompts of different lengths → one padded batch with mask and positions, as the published code pads.

Source: ictnlp/LLaMA-Omni, omni_speech_arch.py. The engine packs without padding; training pads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omni.model.prompt import SPEECH

IGNORED = -100  # a label that no loss looks at


@dataclass(frozen=True)
class Batch:
    """embeds (B, T, D) with zeros where `mask` (B, T) is False; positions (B, T) count a row's own tokens from 0."""

    embeds: Tensor
    mask: Tensor
    positions: Tensor
    labels: Tensor | None = None


def pad(rows: Sequence[Tensor], labels: Sequence[Tensor] | None = None, side: str = "right") -> Batch:
    """Rows (T_i, D), and labels (T_i,) of each, → Batch. `side` is where the padding goes."""
    assert side in ("right", "left"), side
    longest = max(len(row) for row in rows)

    def fill(row: Tensor, value: float) -> Tensor:
        filling = row.new_full((longest - len(row), *row.shape[1:]), value)
        return torch.cat((row, filling) if side == "right" else (filling, row))

    return Batch(
        torch.stack([fill(row, 0.0) for row in rows]),
        torch.stack([fill(torch.ones(len(row), dtype=torch.bool), False) for row in rows]),
        torch.stack([fill(torch.arange(len(row)), 0) for row in rows]),
        None if labels is None else torch.stack([fill(row, IGNORED) for row in labels]),
    )


def spread_labels(ids: Sequence[int], labels: Sequence[int], speech_lengths: Sequence[int]) -> Tensor:
    """Labels per prompt id → labels per embedding: speech, which is many embeddings, is nothing to predict."""
    lengths = iter(speech_lengths)
    spread: list[int] = []
    for token_id, label in zip(ids, labels, strict=True):
        spread += [IGNORED] * next(lengths) if token_id == SPEECH else [label]
    return torch.tensor(spread)
