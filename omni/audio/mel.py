"""Samples → log-mel, exactly as Whisper computes it (openai/whisper, audio.py). Knows nothing of who listens.

    log_mel(pad_or_trim(samples), 128)          # published checkpoint: always 30 s → (128, 3000)
    log_mel(pad_to_embedding(samples), 80)      # true-length checkpoint → (80, F), F a multiple of 10

Frames at 100 Hz. float32.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from omni.audio.wav import SAMPLE_RATE

N_FFT = 400  # 25 ms
HOP = 160  # samples per mel frame, 10 ms
WINDOW_SECONDS = 30
N_SAMPLES = WINDOW_SECONDS * SAMPLE_RATE  # 480,000
SAMPLES_PER_EMBEDDING = 1_600  # 10 mel frames = 5 encoder frames = 1 speech embedding, 100 ms


def pad_or_trim(samples: np.ndarray | Tensor) -> Tensor:
    """(S,) → (480000,): zero-padded on the right, or cut to the first 30 s as the published code does."""
    samples = torch.as_tensor(samples, dtype=torch.float32)[:N_SAMPLES]
    return torch.nn.functional.pad(samples, (0, N_SAMPLES - samples.shape[0]))


def pad_to_embedding(samples: np.ndarray | Tensor) -> Tensor:
    """(S,) → (S',), S' the next multiple of 1600: true length, silence only to fill the last speech embedding."""
    samples = torch.as_tensor(samples, dtype=torch.float32)
    return torch.nn.functional.pad(samples, (0, -samples.shape[0] % SAMPLES_PER_EMBEDDING or 0))


def log_mel(samples: Tensor, n_mels: int) -> Tensor:
    """(S,) samples at 16 kHz → (n_mels, S // 160) at 100 Hz, roughly in [-1, 1.5].

    The floor is the loudest value of the whole input minus 8 (in log10), so padding belongs to the input.
    """
    window = torch.hann_window(N_FFT, device=samples.device)
    spectrum = torch.stft(samples, N_FFT, HOP, window=window, return_complex=True)
    power = spectrum[..., :-1].abs() ** 2  # the last frame is dropped, as Whisper does
    mel = torch.from_numpy(mel_filters(n_mels)).to(samples.device) @ power
    log = torch.clamp(mel, min=1e-10).log10()
    log = torch.maximum(log, log.max() - 8.0)
    return (log + 4.0) / 4.0


@cache
def mel_filters(n_mels: int) -> np.ndarray:
    """(n_mels, 201) triangular filters on Slaney's mel scale, each of area 1, up to 8 kHz: librosa's defaults."""
    fft_hz = np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    edges_hz = _mel_to_hz(np.linspace(0.0, _hz_to_mel(SAMPLE_RATE / 2), n_mels + 2))
    widths = np.diff(edges_hz)
    ramps = edges_hz[:, None] - fft_hz[None, :]
    rising = -ramps[:-2] / widths[:-1, None]
    falling = ramps[2:] / widths[1:, None]
    filters = np.maximum(0.0, np.minimum(rising, falling))
    filters *= (2.0 / (edges_hz[2:] - edges_hz[:-2]))[:, None]
    return filters.astype(np.float32)


# Slaney's scale: linear below 1 kHz (200/3 Hz a mel), logarithmic above (27 mels per factor 6.4).
_HZ_PER_MEL, _KNEE_HZ, _KNEE_MEL, _LOG_STEP = 200.0 / 3, 1000.0, 15.0, np.log(6.4) / 27.0


def _hz_to_mel(hz: float) -> float:
    return hz / _HZ_PER_MEL if hz < _KNEE_HZ else _KNEE_MEL + np.log(hz / _KNEE_HZ) / _LOG_STEP


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < _KNEE_MEL, mel * _HZ_PER_MEL, _KNEE_HZ * np.exp(_LOG_STEP * (mel - _KNEE_MEL)))
