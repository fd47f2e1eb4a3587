"""Uploads of every kind become samples, or an AudioError that names what is wrong."""

import io
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.audio import wav
from omni.audio.wav import SAMPLE_RATE, AudioError

GOLDEN = Path(__file__).parents[1] / "golden" / "audio"
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def tone(seconds: float = 0.5, rate: int = SAMPLE_RATE, channels: int = 1) -> np.ndarray:
    """(S, channels) float32, 440 Hz."""
    mono = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    return np.repeat(mono[:, None], channels, axis=1).astype(np.float32)


def encode(samples: np.ndarray, rate: int = SAMPLE_RATE, format: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def wav_header(channels: int = 1, rate: int = SAMPLE_RATE, size: int = 3200) -> bytes:
    """A 16-bit WAV file whose header says what a broken or hostile one would say."""
    frame = 2 * channels & 0xFFFF
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * frame & 0xFFFFFFFF, frame, 16)
    return b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + struct.pack("<I", 16) + form + (
        b"data" + struct.pack("<I", size) + b"\1\2" * (size // 2)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("format", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "PCM_U8"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("FLAC", None),
     ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None), ("AIFF", None)],
)  # fmt: skip
def test_formats_a_recorder_writes_are_decoded(format, subtype):
    """Any format comes out as the same tone, mono float32 at 16 kHz."""
    samples = wav.decode(encode(tone(), format=format, subtype=subtype))
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert len(samples) == pytest.approx(SAMPLE_RATE / 2, abs=1200)  # MP3 and Vorbis pad
    spectrum = np.abs(np.fft.rfft(samples))
    assert spectrum.argmax() * SAMPLE_RATE / len(samples) == pytest.approx(440, abs=5)


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["webm", "m4a"])
def test_what_browsers_and_phones_record_is_decoded_by_ffmpeg(suffix, tmp_path):
    """WebM and MP4, which libsndfile does not read."""
    path = tmp_path / f"x.{suffix}"
    source = ["-f", "lavfi", "-i", "sine=frequency=440:duration=0.5:sample_rate=48000"]
    subprocess.run(["ffmpeg", "-loglevel", "error", *source, str(path)], check=True)
    samples = wav.decode(path.read_bytes())
    assert len(samples) / SAMPLE_RATE == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_rates_and_channels_become_16_khz_mono(rate, channels):
    samples = wav.decode(encode(tone(0.25, rate, channels), rate))
    assert len(samples) == pytest.approx(SAMPLE_RATE / 4, abs=1)
    assert np.abs(samples[1000:-1000]).max() == pytest.approx(0.5, abs=0.01)


def test_16_khz_pcm_is_taken_bit_by_bit():
    """No resampler and no dither touches audio that is already right."""
    pcm = np.random.default_rng(0).integers(-32768, 32768, 5000).astype("<i2")
    np.testing.assert_array_equal(wav.decode(wav.wav_bytes(pcm.tobytes())) * 32768, pcm)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8], ids=lambda each: each.__name__)
def test_integer_samples_are_scaled_by_their_type(dtype):
    """What Gradio hands over: (rate, integers). Silence is the middle of the type's range."""
    if dtype is np.uint8:
        integers = np.array([128, 192, 64] * 100, dtype)
    else:
        integers = np.array([0, np.iinfo(dtype).max // 2 + 1, np.iinfo(dtype).min // 2] * 100, dtype)
    np.testing.assert_allclose(wav.prepare(integers, SAMPLE_RATE)[:3], [0.0, 0.5, -0.5], atol=1e-4)


def code_of(data: bytes, **limits) -> str:
    with pytest.raises(AudioError) as caught:
        wav.decode(data, **limits)
    assert str(caught.value)
    return caught.value.code


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "audio_empty"),
        (encode(tone(0.0)), "audio_empty"),
        (b"Not audio at all, but a letter to a friend." * 20, "audio_not_decodable"),
        (b"\x00" * 1000, "audio_not_decodable"),
        (b"%PDF-1.7\n" + bytes(range(256)) * 4, "audio_not_decodable"),
        (b"RIFF\x10\0\0\0WAVE", "audio_not_decodable"),
        (encode(tone())[:30], "audio_not_decodable"),
        (wav_header(channels=0), "audio_bad_channels"),
        (wav_header(channels=255), "audio_bad_channels"),
        (wav_header(rate=0), "audio_bad_rate"),
        (wav_header(rate=100), "audio_bad_rate"),
        (wav_header(rate=2**32 - 1), "audio_bad_rate"),
        (encode(np.zeros((8000, 1), np.float32)), "audio_silent"),
        (encode(tone() * 1e-5, subtype="FLOAT"), "audio_silent"),
        (encode(np.full((4000, 1), np.nan, np.float32), subtype="FLOAT"), "audio_not_finite"),
        (encode(np.full((4000, 1), np.inf, np.float32), subtype="FLOAT"), "audio_not_finite"),
        (encode(tone(30.5)), "audio_too_long"),
        (encode(tone(31.5, 8000), 8000), "audio_too_long"),
    ],
    ids=["no bytes", "no samples", "text", "zeros", "pdf", "half a header", "cut header", "0 channels", "255 channels",
         "rate 0", "rate 100", "rate 4 GHz", "silence", "nearly silence", "NaN", "infinite", "30.5 s",
         "31.5 s at 8 kHz"],
)  # fmt: skip
def test_bad_uploads_get_a_code(data, code):
    assert code_of(data) == code


def test_an_upload_over_the_size_limit_is_not_decoded():
    assert code_of(encode(tone()), max_bytes=100) == "audio_too_large"


@pytest.mark.parametrize("seconds", [29.9, 30.0])
def test_audio_up_to_the_limit_is_whole(seconds):
    """Nothing is silently cut: 30 s in, 30 s out."""
    assert len(wav.decode(encode(tone(seconds)))) == seconds * SAMPLE_RATE


def test_the_limit_is_a_setting():
    assert code_of(encode(tone(2.0)), max_seconds=1.0) == "audio_too_long"
    assert len(wav.decode(encode(tone(40.0)), max_seconds=60.0)) == 40 * SAMPLE_RATE


def test_silence_is_let_through_where_it_is_wanted():
    assert len(wav.decode(encode(np.zeros((8000, 1), np.float32)), allow_silence=True)) == 8000


def test_a_length_field_that_lies_does_not_reserve_memory():
    """A header that promises 4 GB over 100 samples gives what is there, or an error; never 4 GB."""
    data = wav_header(size=200).replace(b"data" + struct.pack("<I", 200), b"data" + struct.pack("<I", 2**32 - 10))
    assert len(wav.decode(data)) == 100


@needs_ffmpeg
def test_a_playlist_does_not_make_ffmpeg_open_other_files(tmp_path):
    """Formats that name other files or addresses are refused: only the upload itself is read."""
    secret = tmp_path / "secret.wav"
    secret.write_bytes(encode(tone()))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    assert code_of(playlist.encode()) == "audio_not_decodable"
    assert code_of(f"ffconcat version 1.0\nfile '{secret}'\n".encode()) == "audio_not_decodable"


def test_without_ffmpeg_the_message_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(AudioError, match="ffmpeg"):
        wav.decode(b"\x1aE\xdf\xa3" + b"\0" * 100)


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=400))
def test_random_bytes_in_a_wav_give_samples_or_an_audio_error(noise):
    """No other exception leaves decode, whatever follows a RIFF header."""
    try:
        samples = wav.decode(b"RIFF" + noise[:4].ljust(4, b"\0") + b"WAVE" + noise)
    except AudioError as error:
        assert error.code.startswith("audio_")
    else:
        assert np.isfinite(samples).all()


def test_every_pcm_value_survives_the_way_there_and_back():
    pcm = np.arange(-32768, 32768).astype("<i2").tobytes()
    assert wav.to_pcm16(wav.from_pcm16(pcm)) == pcm


def test_samples_beyond_full_scale_are_limited_not_wrapped():
    assert np.frombuffer(wav.to_pcm16(np.array([2.0, -2.0])), "<i2").tolist() == [32767, -32768]


def test_a_written_file_reads_back(tmp_path):
    samples = tone()[:, 0]
    wav.write(tmp_path / "x.wav", samples)
    np.testing.assert_allclose(wav.read(tmp_path / "x.wav"), samples, atol=1 / 32768)


def test_22_khz_is_resampled_as_ffmpeg_would():
    """The same sentence at 22.05 kHz is the 16 kHz one, up to the resampler's edge."""
    there, here = wav.read(GOLDEN / "utt0_22050.wav"), wav.read(GOLDEN / "utt0.wav")
    size = min(len(there), len(here))
    assert abs(len(there) - len(here)) <= 1
    assert np.corrcoef(there[:size], here[:size])[0, 1] > 0.999
