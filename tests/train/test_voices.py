"""The way to the microphone changes sound, not its validity, and always in the same way for the same seed."""

import numpy as np
import pytest

from omni.train import voices


@pytest.fixture
def speech():
    t = np.arange(16_000) / 16_000
    return (0.3 * np.sin(2 * np.pi * 220 * t)).astype(np.float32)


def test_a_room_is_the_same_for_the_same_seed(speech):
    first, second = (voices.room(speech, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("seed", range(12))
def test_what_comes_out_is_sound(speech, seed):
    x = voices.room(speech, np.random.default_rng(seed))
    assert x.dtype == np.float32
    assert np.isfinite(x).all() and 0.05 < np.abs(x).max() <= 1.0
    assert 0.8 < len(x) / 16_000 < 2.2


def test_pitch_is_that_of_a_faster_tape(speech):
    """A factor of 1.1 shortens a second to 0.91 s and raises 220 Hz to 242 Hz."""
    x = voices.pitch(speech, 1.1)
    spectrum = np.abs(np.fft.rfft(x * np.hanning(len(x))))
    assert len(x) == pytest.approx(16_000 / 1.1, abs=2)
    assert np.argmax(spectrum) * 16_000 / len(x) == pytest.approx(242, abs=2)


def test_an_unknown_voice_lists_the_choices():
    with pytest.raises(ValueError, match="Select one of hibari, joe, kokoro"):
        voices.make("alexa")
