"""Resampling in portions: joined, the same as in one piece, at every rate that /v1/realtime has."""

import numpy as np
import pytest
import soxr

from omni.audio import wav
from omni.audio.resample import Resampler


def samples(pcm16: bytes) -> np.ndarray:
    return np.frombuffer(pcm16, dtype="<i2").astype(int)


@pytest.mark.parametrize(("rate", "new_rate"), [(16_000, 24_000), (24_000, 16_000), (16_000, 48_000), (16_000, 8_000)])
def test_portions_join_without_a_click(rate, new_rate):
    """Random portions, some of them empty, give the whole's samples to ±1, and as many."""
    rng = np.random.default_rng(rate)
    sweep = np.sin(2 * np.pi * np.cumsum(np.linspace(50, 6_000, 2 * rate)) / rate).astype(np.float32) * 0.5
    pcm16, resample, joined, start = wav.to_pcm16(sweep), Resampler(rate, new_rate), b"", 0
    while start < len(pcm16):
        end = start + 2 * int(rng.integers(0, 2_000))
        joined, start = joined + resample(pcm16[start:end]), end
    joined += resample(b"", last=True)
    whole = samples(wav.to_pcm16(soxr.resample(wav.from_pcm16(pcm16), rate, new_rate)))
    assert len(samples(joined)) == len(whole) and np.abs(samples(joined) - whole).max() <= 1


def test_the_same_rate_is_left_alone():
    assert Resampler(16_000, 16_000)(b"\x01\x02" * 5) == b"\x01\x02" * 5
