"""Log-mel features against openai-whisper's own, of any length and both filter banks."""

import numpy as np
import pytest
import torch
import whisper

from omni.audio import mel


def noise(num_samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_samples, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("num_samples", [1_600, 16_001, 480_000])
def test_features_are_whispers(n_mels, num_samples):
    samples = noise(num_samples)
    theirs = whisper.log_mel_spectrogram(samples, n_mels)
    torch.testing.assert_close(mel.log_mel(samples, n_mels), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_filters_are_whispers(n_mels):
    theirs = whisper.audio.mel_filters("cpu", n_mels).numpy()
    np.testing.assert_allclose(mel.mel_filters(n_mels), theirs, atol=1e-8)


@pytest.mark.parametrize("num_samples", [0, 1, 479_999, 480_000, 500_000])
def test_padded_mode_is_always_30_seconds(num_samples):
    samples = noise(num_samples).numpy()
    fitted = mel.pad_or_trim(samples)
    np.testing.assert_array_equal(fitted, whisper.pad_or_trim(samples))
    assert mel.log_mel(fitted, 128).shape == (128, 3000)


@pytest.mark.parametrize(("num_samples", "num_embeddings"), [(1, 1), (1_600, 1), (1_601, 2), (16_000, 10)])
def test_true_length_fills_only_the_last_embedding(num_samples, num_embeddings):
    """10 mel frames make 5 encoder frames make one speech embedding."""
    fitted = mel.pad_to_embedding(noise(num_samples))
    assert len(fitted) == num_embeddings * mel.SAMPLES_PER_EMBEDDING
    assert (fitted[num_samples:] == 0).all()
    assert mel.log_mel(fitted, 80).shape == (80, 10 * num_embeddings)
