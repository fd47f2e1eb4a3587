"""Voice activity: streamed = whole, the package's own model, and that it hears speech and nothing else."""

from pathlib import Path

import numpy as np
import pytest

from omni.audio import wav
from omni.audio.vad import WINDOW, VoiceActivity, load

HELDOUT = Path(__file__).parents[2] / "omni" / "train" / "data" / "heldout"


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return wav.read(HELDOUT / "chitchat-000.flac")


@pytest.fixture(scope="module")
def whole(speech) -> np.ndarray:
    return VoiceActivity(load()).push(speech)


@pytest.mark.parametrize("portion", [1, 160, 513, 4_000])
def test_portions_make_no_difference(speech, whole, portion):
    """However the samples arrive, the probabilities are those of the whole recording."""
    ear, heard = VoiceActivity(load()), []
    for start in range(0, len(speech) if portion > 1 else 3 * WINDOW, portion):
        heard += list(ear.push(speech[start : start + portion]))
    assert len(heard) == (len(speech) // WINDOW if portion > 1 else 3)
    assert np.allclose(heard, whole[: len(heard)], atol=1e-5)


def test_it_is_silero(speech, whole):
    """The same probabilities as silero_vad's own wrapper, which needs torch, gives window by window."""
    torch, silero = pytest.importorskip("torch"), pytest.importorskip("silero_vad")
    model = silero.load_silero_vad(onnx=True)
    windows = speech[: len(whole) * WINDOW].reshape(-1, WINDOW)
    theirs = [model(torch.from_numpy(window.copy()), 16_000).item() for window in windows]
    assert np.allclose(whole, theirs, atol=1e-4)


def test_it_hears_speech(whole):
    assert whole.max() > 0.9


@pytest.mark.parametrize("level", [0.0, 0.01, 0.1], ids=["nothing", "hiss", "loud-hiss"])
def test_it_hears_no_speech_in_noise(level):
    noise = np.random.default_rng(0).normal(0, 1, 32_000).astype(np.float32) * level
    assert VoiceActivity(load()).push(noise).max(initial=0) < 0.5


def test_streams_do_not_disturb_each_other(speech, whole):
    """Two ears share the network, and nothing else."""
    one, other = VoiceActivity(load()), VoiceActivity(load())
    heard = []
    for start in range(0, len(speech), 1600):
        heard += list(one.push(speech[start : start + 1600]))
        other.push(-speech[start : start + 1600][::-1])
    assert np.allclose(heard, whole, atol=1e-5)
