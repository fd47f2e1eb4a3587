"""frontend/: recordings and signals → samples and log-mel, against Whisper's."""

import hashlib
import shutil

import numpy as np

from omni.audio import mel, wav
from omni.conformance.folder import Fixture, Folder
from omni.conformance.report import Report

TOLERANCE = 1e-4  # mel, across STFT back ends
SAMPLE_TOLERANCE = 1e-3  # of full scale, across versions of ffmpeg's resampler
RESAMPLING_TOLERANCE = 0.03  # RMS difference over RMS: another resampler rolls off elsewhere, just below 8 kHz
TONE = (440.0, 0.1)  # Hz and amplitude of the signal in special_mel.npz


def check(folder: Folder, report: Report) -> None:
    for fixture in folder.part("frontend"):
        if "audio_i16" in fixture:
            check_loading(folder, fixture, report)
        elif "frame_idx" in fixture:
            check_special(fixture, report)
        elif "mel_frames" in fixture:
            check_utterance(folder, fixture, report)


def check_utterance(folder: Folder, fixture: Fixture, report: Report) -> None:
    """The features of one recording: rows of (3000, n_mels), and what sums up the rest."""
    utterance = fixture.path.stem.removesuffix("_mel")
    if not folder.has_audio(utterance):
        report.skip(fixture.name, "log-mel", f"audio/{utterance}.wav is not there")
        return
    samples = folder.audio(utterance)
    if "audio_len" in fixture:
        report.equal(fixture.name, "number of samples", _cut(samples, fixture).shape[0], fixture["audio_len"])
    if "audio_sha256_f32" in fixture:
        report.equal(fixture.name, "samples (sha256)", digest(_cut(samples, fixture)), fixture["audio_sha256_f32"])
    compare_mel(fixture, features(samples, fixture["mel_shape"][1]), report)
    fixture.without_digests()


def compare_mel(fixture: Fixture, ours: np.ndarray, report: Report) -> None:
    """ours (F, n_mels)"""
    report.equal(fixture.name, "mel shape", ours.shape, fixture["mel_shape"])
    if "mel_frame_idx" in fixture:
        report.close(fixture.name, "mel frames", ours[fixture["mel_frame_idx"]], fixture["mel_frames"], TOLERANCE)
    for key, value in (
        ("mel_full", ours),
        ("mel_stats", statistics(ours)),
        ("mel_bin_mean", ours.mean(axis=0)),
        ("mel_bin_std", ours.std(axis=0)),
    ):
        if key in fixture:
            report.close(fixture.name, key.replace("_", " "), value, fixture[key], TOLERANCE)


def check_special(fixture: Fixture, report: Report) -> None:
    """Signals that break front ends: silence, one sample, nothing, exactly 30 s and more."""
    rows = fixture["frame_idx"]
    for name, samples in special_signals().items():
        if f"{name}_frames" not in fixture:
            continue
        frames = fixture[f"{name}_frames"]
        ours = features(samples, frames.shape[1])
        report.close(fixture.name, f"{name}: mel frames", ours[rows], frames, TOLERANCE)
        for key, value in ((f"{name}_stats", statistics(ours)), (f"{name}_shape", ours.shape)):
            if key in fixture:
                report.close(fixture.name, f"{name}: mel {key.rsplit('_', 1)[1]}", value, fixture[key], TOLERANCE)


def special_signals() -> dict[str, np.ndarray]:
    hertz, amplitude = TONE
    tone = amplitude * np.sin(2 * np.pi * hertz * np.arange(mel.N_SAMPLES + wav.SAMPLE_RATE) / wav.SAMPLE_RATE)
    return {
        "silence": np.zeros(wav.SAMPLE_RATE, np.float32),
        "one_sample": np.array([0.5], np.float32),
        "exact30": tone[: mel.N_SAMPLES].astype(np.float32),
        "over30": tone.astype(np.float32),
        "empty": np.zeros(0, np.float32),
    }


def check_loading(folder: Folder, fixture: Fixture, report: Report) -> None:
    """A file at another rate: ours (soxr) is as long and close; ffmpeg, our other loader, is the reference's own."""
    stem = fixture.path.stem.removesuffix("_loaded")
    fixture.without_digests()  # int16 rounding after a resampler differs between versions of ffmpeg
    if not folder.has_audio(stem):
        report.skip(fixture.name, "samples", f"audio/{stem}.wav is not there")
        return
    theirs = fixture["audio_i16"].astype(np.float32) / wav.PCM16_SCALE
    ours = folder.audio(stem)
    report.close(fixture.name, "number of samples", len(ours), len(theirs), 1.0)
    size = min(len(ours), len(theirs))
    error = rms(ours[:size] - theirs[:size]) / max(rms(theirs[:size]), 1e-9)
    report.close(fixture.name, "relative RMS error of our resampler", error, 0.0, RESAMPLING_TOLERANCE)
    if shutil.which("ffmpeg") is None:
        report.skip(fixture.name, "samples by ffmpeg", "ffmpeg is not installed")
        return
    by_ffmpeg = wav.read_with_ffmpeg(folder.audio_path(stem).read_bytes(), max_seconds=3600)
    report.close(fixture.name, "samples by ffmpeg", by_ffmpeg, theirs, SAMPLE_TOLERANCE)


def features(samples: np.ndarray, num_mels: int) -> np.ndarray:
    """(S,) → (3000, n_mels), padded or cut to 30 s as published."""
    return mel.log_mel(mel.pad_or_trim(samples), int(num_mels)).T.numpy()


def statistics(values: np.ndarray) -> list[float]:
    """mean, deviation, least and greatest, as the fixtures sum arrays up."""
    values = np.asarray(values, dtype=np.float64)
    return [values.mean(), values.std(), values.min(), values.max()]


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def digest(samples: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(samples, dtype="<f4").tobytes()).hexdigest()


def _cut(samples: np.ndarray, fixture: Fixture) -> np.ndarray:
    """A fixture of a long recording may tell of the first 30 s only."""
    return samples[: mel.N_SAMPLES] if fixture["audio_len"] == mel.N_SAMPLES else samples
