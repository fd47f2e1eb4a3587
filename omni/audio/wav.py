"""Any upload → mono float32 samples at 16 kHz, and samples → PCM. Knows formats and limits; knows no model.

    samples = decode(upload, max_seconds=30.0)       # (S,) float32 in [-1, 1], 16 kHz
    to_pcm16(samples)                                # bytes, int16 LE

Bad input raises AudioError, whose `code` says what is wrong and whose message says what to do. Nothing is cut silently.
Raw bytes only: a path or URL from a client never reaches this file.
"""

import io
import shutil
import subprocess
import wave
from pathlib import Path

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16_000  # Hz, of every sample in this project
PCM16_SCALE = 32_768
MIN_RATE, MAX_RATE = 4_000, 384_000  # Hz; outside of it a header is taken for broken
MAX_CHANNELS = 16
SILENCE = 10 ** (-60 / 20)  # peak below -60 dBFS: nothing was said
DECODE_TIMEOUT = 20.0  # seconds for ffmpeg


class AudioError(ValueError):
    """The audio cannot be answered; `code` names the cause for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def decode(
    data: bytes, *, max_seconds: float = 30.0, max_bytes: int = 25_000_000, allow_silence: bool = False
) -> np.ndarray:
    """Bytes of a WAV, FLAC, OGG, MP3, M4A, WebM … file → (S,) float32, mono, 16 kHz.

    Raises AudioError: audio_too_large, audio_empty, audio_not_decodable, audio_bad_channels, audio_bad_rate,
    audio_too_long, audio_not_finite, audio_silent.
    """
    if len(data) > max_bytes:
        raise AudioError("audio_too_large", f"The upload has {len(data)} bytes; the limit is {max_bytes}.")
    if not data:
        raise AudioError("audio_empty", "The upload is empty.")
    _check_wav_header(data)
    samples, rate = _read_samples(data, max_seconds)
    return prepare(samples, rate, max_seconds=max_seconds, allow_silence=allow_silence)


def prepare(
    samples: np.ndarray, rate: int, *, max_seconds: float = 30.0, allow_silence: bool = False
) -> np.ndarray:
    """Samples (S,) or (S, channels), float or integer, at any rate → (S,) float32, mono, 16 kHz, checked."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError("audio_bad_rate", f"A rate of {rate} Hz is outside {MIN_RATE} … {MAX_RATE} Hz.")
    if samples.ndim > 2 or (samples.ndim == 2 and not 1 <= samples.shape[1] <= MAX_CHANNELS):
        raise AudioError("audio_bad_channels", f"Audio of shape {samples.shape}: need 1 to {MAX_CHANNELS} channels.")
    if samples.shape[0] == 0:
        raise AudioError("audio_empty", "The audio has no samples.")
    seconds = samples.shape[0] / rate
    if seconds > max_seconds:
        raise AudioError("audio_too_long", f"The audio lasts {seconds:.1f} s; the limit is {max_seconds:g} s.")
    if np.issubdtype(samples.dtype, np.integer):
        samples = _unit_scale(samples)
    if not np.isfinite(samples).all():
        raise AudioError("audio_not_finite", "The audio contains NaN or infinite samples.")
    mono = samples.astype(np.float32) if samples.ndim == 1 else samples.mean(axis=1, dtype=np.float32)
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
    mono = np.clip(mono, -1.0, 1.0).astype(np.float32)
    if mono.size == 0:
        raise AudioError("audio_empty", "The audio has no samples.")
    if not allow_silence and float(np.abs(mono).max()) < SILENCE:
        raise AudioError("audio_silent", "The audio is silent (peak below -60 dBFS). Check the microphone.")
    return mono


def _unit_scale(integers: np.ndarray) -> np.ndarray:
    """Integers → [-1, 1): silence is 0 in signed types, and the middle of the range in unsigned ones."""
    limits = np.iinfo(integers.dtype)
    half = (int(limits.max) - int(limits.min) + 1) // 2
    middle = half if limits.min == 0 else 0
    return ((integers.astype(np.float64) - middle) / half).astype(np.float32)


def read(path: str | Path, **limits) -> np.ndarray:
    """A local file (never a client's path) → (S,) float32, mono, 16 kHz."""
    return decode(Path(path).read_bytes(), **limits)


def write(path: str | Path, samples: np.ndarray) -> None:
    """(S,) float32 at 16 kHz → a 16-bit WAV file."""
    Path(path).write_bytes(wav_bytes(to_pcm16(samples)))


def to_pcm16(samples: np.ndarray) -> bytes:
    """(S,) float in [-1, 1] → int16 LE bytes; out-of-range values are limited. Exact inverse of from_pcm16."""
    return np.clip(np.rint(samples * PCM16_SCALE), -32_768, 32_767).astype("<i2").tobytes()


def from_pcm16(pcm: bytes) -> np.ndarray:
    """int16 LE bytes → (S,) float32 in [-1, 1)."""
    return np.frombuffer(pcm, dtype="<i2").astype(np.float32) / PCM16_SCALE


def wav_bytes(pcm: bytes, rate: int = SAMPLE_RATE) -> bytes:
    """int16 LE mono PCM → the bytes of a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(pcm)
    return file.getvalue()


def _check_wav_header(data: bytes) -> None:
    """Name a broken WAV header for what it is before a decoder guesses."""
    if data[:4] not in (b"RIFF", b"RF64") or data[8:12] != b"WAVE":
        return
    at = data.find(b"fmt ", 12)
    if at < 0 or len(data) < at + 24:
        raise AudioError("audio_not_decodable", "The WAV file is cut off before its format is told.")
    channels = int.from_bytes(data[at + 10 : at + 12], "little")
    rate = int.from_bytes(data[at + 12 : at + 16], "little")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError("audio_bad_channels", f"The WAV file says {channels} channels; need 1 to {MAX_CHANNELS}.")
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError("audio_bad_rate", f"The WAV file says {rate} Hz; need {MIN_RATE} … {MAX_RATE} Hz.")


def _read_samples(data: bytes, max_seconds: float) -> tuple[np.ndarray, int]:
    """libsndfile first (fast, in process); ffmpeg through a pipe for what it does not know (MP4, WebM, AAC)."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.channels > MAX_CHANNELS:
                raise AudioError("audio_bad_channels", f"{file.channels} channels; need 1 to {MAX_CHANNELS}.")
            if not MIN_RATE <= file.samplerate <= MAX_RATE:
                raise AudioError("audio_bad_rate", f"A rate of {file.samplerate} Hz is outside what speech uses.")
            # One block past the limit tells "too long" without reading (or believing) the rest.
            samples = file.read(int((max_seconds + 1) * file.samplerate), dtype="float32", always_2d=True)
            return samples, file.samplerate
    except soundfile.LibsndfileError as exc:
        if data[:4] in (b"RIFF", b"RF64"):
            raise AudioError("audio_not_decodable", f"The WAV file cannot be read: {exc}") from exc
    if not _starts_like_media(data):  # no process is started for what cannot be audio, or names other files
        raise AudioError("audio_not_decodable", "The upload starts like no audio format that is known here.")
    return read_with_ffmpeg(data, max_seconds), SAMPLE_RATE


def _starts_like_media(data: bytes) -> bool:
    """MP4 and M4A; WebM and Matroska; AAC and MP3 frames; ID3; OGG; CAF; AMR; ASF and WMA."""
    starts = (b"\x1aE\xdf\xa3", b"ID3", b"OggS", b"caff", b"#!AMR", b"0&\xb2u", b"ADIF", b"fLaC")
    return data[4:8] == b"ftyp" or data.startswith(starts) or (data[:1] == b"\xff" and data[1:2] >= b"\xe0")


def read_with_ffmpeg(data: bytes, max_seconds: float) -> np.ndarray:
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise AudioError("audio_not_decodable", "Not WAV, FLAC, OGG or MP3; other formats need ffmpeg installed.")
    command = [ffmpeg, "-nostdin", "-loglevel", "error", "-protocol_whitelist", "pipe,fd", "-i", "pipe:0", "-t",
               str(max_seconds + 1), "-vn", "-ac", "1", "-ar", str(SAMPLE_RATE), "-f", "f32le", "pipe:1"]  # fmt: skip
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=DECODE_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as exc:
        raise AudioError("audio_not_decodable", f"Decoding took more than {DECODE_TIMEOUT:g} s.") from exc
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["unknown format"]
        raise AudioError("audio_not_decodable", f"The upload is no audio that can be decoded: {reason[0][:200]}")
    return np.frombuffer(done.stdout, dtype="<f4")
