"""Units → how long each lasts: what every vocoder of units begins with, whatever it makes the sound of.

Source: facebookresearch/fairseq, codehifigan.py and fastspeech2.py (VariancePredictor).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from omni.vocoder.hifigan import Padding


class DurationPredictor(nn.Module):
    """Unit embeddings (B, N, C) → log(1 + frames) (B, N). Each sees two units on either side."""

    def __init__(self, width: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv1d(width, hidden, kernel, padding=(kernel - 1) // 2))
        self.ln1 = nn.LayerNorm(hidden)
        self.conv2 = nn.Sequential(nn.Conv1d(hidden, hidden, kernel, padding=1))
        self.ln2 = nn.LayerNorm(hidden)
        self.proj = nn.Linear(hidden, 1)

    def forward(self, embedded: Tensor, inside: Padding) -> Tensor:
        x = relu(self.conv1(inside(embedded.transpose(1, 2))))
        x = inside(self.ln1(x.transpose(1, 2)).transpose(1, 2))
        x = relu(self.conv2(x)).transpose(1, 2)
        return self.proj(self.ln2(x)).squeeze(-1)


class UnitVocoder(nn.Module):
    """A table of units and a duration predictor, which a vocoder's own __init__ makes; its forward makes the sound.

    durations(units (B, N), lengths (B,)) → (B, N) frames; forward(units, durations, lengths) → samples (B, S).
    Rows of a batch get what they would get alone. Past a row's length durations and samples are 0.
    """

    config: Mapping[str, Any]
    dict: nn.Embedding
    dur_predictor: DurationPredictor

    @property
    def num_units(self) -> int:
        return self.dict.num_embeddings

    def durations(self, units: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, N) → (B, N) int64: at least one frame for every unit, 0 for padding."""
        if units.shape[1] == 0:
            return torch.zeros_like(units)
        inside = Padding(lengths, units.shape[1])
        log_durations = self.dur_predictor(self.dict(self._checked(units)), inside)
        frames = torch.round(torch.exp(log_durations) - 1).long().clamp(min=1)  # halves to even, as published
        return inside(frames[:, None])[:, 0]

    @torch.inference_mode()
    def speak(self, units: Sequence[int]) -> Tensor:
        """One answer at once: units → samples (S,). Negative codes are dropped, as published."""
        row = torch.tensor([[unit for unit in units if unit >= 0]], dtype=torch.long, device=self.dict.weight.device)
        return self(row, self.durations(row))[0]

    def _checked(self, units: Tensor) -> Tensor:
        if units.numel() and not 0 <= int(units.min()) <= int(units.max()) < self.num_units:
            raise ValueError(f"units must be 0 … {self.num_units - 1}; got {int(units.min())} … {int(units.max())}.")
        return units
