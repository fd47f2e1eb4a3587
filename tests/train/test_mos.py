"""The MOS predictor: speech rates above noise, what is too short is not rated, and torchaudio stays away."""

import sys

import numpy as np
import pytest

from omni.audio import wav
from omni.train import evaluate, scoring
from omni.train.mos import Mos, MosMissing


@pytest.fixture(scope="module")
def rate() -> Mos:
    try:
        return Mos.installed()
    except MosMissing as exc:
        pytest.skip(str(exc))


def test_speech_rates_above_noise(rate):
    spoken = wav.read(scoring.read_manifest(evaluate.HELDOUT)[2].audio)
    noise = np.random.default_rng(0).standard_normal(len(spoken)).astype(np.float32) * 0.1
    assert 1 <= rate(noise) + 1 < rate(spoken) <= 5


def test_what_is_too_short_is_not_rated(rate):
    assert rate(np.zeros(16_000, np.float32)) is None


def test_no_empty_module_stays_behind(rate):
    """transformers looks for torchaudio by name; an empty one left in sys.modules would break it."""
    assert "torchaudio" not in sys.modules


def test_a_missing_predictor_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "distillmos", None)
    with pytest.raises(MosMissing, match=r"pip install --no-deps distillmos==0\.9\.1"):
        Mos.installed()
