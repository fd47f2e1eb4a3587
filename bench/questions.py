"""Spoken questions to measure with: the held-out recordings that omni brings along. No torch."""

from pathlib import Path

import numpy as np

import omni
from omni.audio import wav
from omni.audio.wav import SAMPLE_RATE

HELD_OUT = Path(omni.__file__).parent / "train" / "data" / "heldout"
NOISE = 1e-5  # of full scale: inaudible, and yet another question for a cache


def recordings() -> list[np.ndarray]:
    """All of them, (S,) at 16 kHz."""
    return [wav.read(path) for path in sorted(HELD_OUT.glob("*.flac"))]


def load(count: int, seconds: float) -> list[np.ndarray]:
    """`count` questions of exactly so many seconds, the nearest ones first: longer ones cut, shorter ones repeated."""
    num_samples = round(seconds * SAMPLE_RATE)
    nearest = sorted(recordings(), key=lambda samples: abs(len(samples) - num_samples))
    chosen = [nearest[i % len(nearest)] for i in range(count)]
    return [np.resize(samples, num_samples).astype(np.float32) for samples in chosen]


def fresh(question: np.ndarray, number: int) -> np.ndarray:
    """The same question to an ear, a new one to an engine that remembers what it has read."""
    noise = np.random.default_rng(number).standard_normal(len(question)).astype(np.float32)
    return np.clip(question + NOISE * noise, -1.0, 1.0)
