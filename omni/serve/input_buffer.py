"""What was appended and is no item yet: samples at 16 kHz, counted since the stream's beginning. Decides only.

buffer = InputBuffer(rate=24_000)
buffer.append(pcm16)                # odd portions, any number of them
buffer.forget(buffer.end - 4_800)   # nobody spoke: only so much may be needed as padding
buffer.take(start, end)             # the question; it and what was before it are gone
"""

from omni.audio.resample import Resampler
from omni.audio.wav import SAMPLE_RATE
from omni.serve.errors import BadRequest

SAMPLE_BYTES = 2  # int16


class InputBuffer:
    def __init__(self, rate: int = SAMPLE_RATE) -> None:
        self.start = 0  # number of the first sample that is kept
        self.bytes_in = 0  # since the last `take`
        self._pcm = bytearray()
        self.change_rate(rate)

    @property
    def end(self) -> int:
        """Number of the sample that comes next."""
        return self.start + len(self._pcm) // SAMPLE_BYTES

    @property
    def seconds(self) -> float:
        return (self.end - self.start) / SAMPLE_RATE

    def change_rate(self, rate: int) -> None:
        """What is appended from now on has this rate."""
        self.rate = rate
        self._resample = Resampler(rate, SAMPLE_RATE)

    def append(self, pcm16: bytes) -> None:
        """int16 LE, mono, at `rate`."""
        if len(pcm16) % SAMPLE_BYTES:
            raise BadRequest(f"{len(pcm16)} bytes are no whole number of int16 samples.", code="invalid_value")
        self.bytes_in += len(pcm16)
        self._pcm += self._resample(pcm16)

    def flush(self) -> None:
        """The audio ends here, for now: what the resampler holds back comes too."""
        self._pcm += self._resample(b"", last=True)
        self.change_rate(self.rate)

    def peek(self, start: int, end: int) -> bytes:
        """int16 LE, mono, 16 kHz: the samples from number `start` to before `end`, as far as they are kept."""
        first = max(start - self.start, 0) * SAMPLE_BYTES
        return bytes(self._pcm[first : max(end - self.start, 0) * SAMPLE_BYTES])

    def take(self, start: int, end: int) -> bytes:
        taken = self.peek(start, end)
        self.forget(end)
        self.bytes_in = 0
        return taken

    def forget(self, end: int) -> None:
        """Drop all samples before this one."""
        count = min(max(end - self.start, 0), self.end - self.start)
        del self._pcm[: count * SAMPLE_BYTES]
        self.start += count
