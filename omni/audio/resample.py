"""PCM in portions from one rate to another. Joined, the portions are what resampling the whole would give: no clicks.

resample = Resampler(24_000, 16_000)
resample(pcm16)                   # what is certain so far; a few milliseconds stay back
resample(b"", last=True)          # the rest
"""

import soxr

from omni.audio import wav


class Resampler:
    def __init__(self, rate: int, new_rate: int) -> None:
        self._stream = None if rate == new_rate else soxr.ResampleStream(rate, new_rate, 1, dtype="float32")

    def __call__(self, pcm16: bytes, last: bool = False) -> bytes:
        """int16 LE, mono, in and out."""
        if self._stream is None:
            return pcm16
        return wav.to_pcm16(self._stream.resample_chunk(wav.from_pcm16(pcm16), last=last))
