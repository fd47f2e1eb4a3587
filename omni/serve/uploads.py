"""Uploaded bytes → PCM at 16 kHz, in a few threads so that the event loop goes on. Opens no path and no URL.

At most `num_threads` uploads are decoded at once; the others wait their turn.
"""

import asyncio
import base64
import binascii
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from omni.audio import wav
from omni.audio.wav import AudioError
from omni.serve.errors import BadAudio, BadRequest, TooLarge

T = TypeVar("T")
RAW_PCM = "audio/pcm"  # int16 LE, interleaved; parameters rate (16000) and channels (1)


class Uploads:
    def __init__(self, *, max_seconds: float, max_bytes: int, num_threads: int) -> None:
        self._max_seconds, self._max_bytes = max_seconds, max_bytes
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="upload")

    async def in_thread(self, work: Callable[..., T], *args) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)

    async def decode(self, data: bytes, content_type: str = "", *, param: str | None = None) -> bytes:
        """An upload → int16 LE, mono, 16 kHz. BadAudio or TooLarge say what is wrong with it."""
        try:
            return await self.in_thread(self._decode, data, content_type)
        except AudioError as exc:
            kind = TooLarge if exc.code == "audio_too_large" else BadAudio
            raise kind(str(exc), code=exc.code, param=param) from exc

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _decode(self, data: bytes, content_type: str) -> bytes:
        if content_type.partition(";")[0].strip().lower() == RAW_PCM:
            samples, rate = raw_samples(data, content_type)
            return wav.to_pcm16(wav.prepare(samples, rate, max_seconds=self._max_seconds))
        return wav.to_pcm16(wav.decode(data, max_seconds=self._max_seconds, max_bytes=self._max_bytes))


def raw_samples(data: bytes, content_type: str) -> tuple[np.ndarray, int]:
    """`audio/pcm; rate=48000; channels=2` and its bytes → samples (S, channels), rate."""
    given = {"rate": wav.SAMPLE_RATE, "channels": 1}
    for parameter in content_type.split(";")[1:]:
        name, _, value = (part.strip().lower() for part in parameter.partition("="))
        if name not in given or not value.isdecimal() or len(value) > 7:
            raise BadRequest(f"{RAW_PCM} takes rate and channels, whole numbers; got {parameter.strip()!r}.")
        given[name] = int(value)
    rate, channels = given["rate"], given["channels"]
    if not 1 <= channels <= wav.MAX_CHANNELS:
        raise AudioError("audio_bad_channels", f"{channels} channels; need 1 to {wav.MAX_CHANNELS}.")
    if len(data) % (2 * channels):
        raise AudioError("audio_not_decodable", f"{len(data)} bytes are no whole number of int16 × {channels} samples.")
    return np.frombuffer(data, dtype="<i2").reshape(-1, channels), rate


def from_base64(text: str, param: str) -> bytes:
    """Strict, but for line breaks and blanks, which many encoders put in."""
    try:
        return binascii.a2b_base64("".join(text.split()).encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as exc:
        raise BadRequest(f"{param} is not base64: {exc}", code="invalid_base64", param=param) from exc


def to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
