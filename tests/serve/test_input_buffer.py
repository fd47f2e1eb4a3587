"""What was appended: counted, taken, forgotten; at 16 kHz whatever its rate."""

import numpy as np
import pytest

from omni.audio import wav
from omni.serve.errors import BadRequest
from omni.serve.input_buffer import InputBuffer


def pcm(numbers) -> bytes:
    return np.array(list(numbers), dtype="<i2").tobytes()


def test_tiny_portions_are_one_recording():
    buffer = InputBuffer()
    for i in range(1_000):
        buffer.append(pcm([i]))
    assert (buffer.start, buffer.end, buffer.bytes_in) == (0, 1_000, 2_000)
    assert buffer.peek(10, 20) == pcm(range(10, 20))
    assert buffer.take(0, 1_000) == pcm(range(1_000))
    assert (buffer.start, buffer.end, buffer.bytes_in) == (1_000, 1_000, 0)


def test_samples_keep_their_numbers():
    """After some are forgotten too; what is gone is not made up."""
    buffer = InputBuffer()
    buffer.append(pcm(range(100)))
    buffer.forget(40)
    assert (buffer.start, buffer.end) == (40, 100)
    assert buffer.peek(30, 50) == pcm(range(40, 50))
    assert buffer.take(90, 95) == pcm(range(90, 95))
    assert buffer.peek(0, 200) == pcm(range(95, 100))
    buffer.forget(1_000)
    assert (buffer.start, buffer.end) == (100, 100)
    buffer.forget(50)  # long ago
    assert buffer.start == 100


def test_24_khz_become_16_khz():
    """In portions, flushed: as resampling the whole would give; and the next recording starts clean."""
    tone = wav.to_pcm16(np.sin(np.arange(24_000) / 10).astype(np.float32) * 0.3)
    buffer = InputBuffer(24_000)
    for _ in range(2):
        for start in range(0, len(tone), 962):
            buffer.append(tone[start : start + 962])
        buffer.flush()
        once = buffer.take(buffer.start, buffer.end)
        assert len(once) == 2 * 16_000
        whole = wav.to_pcm16(wav.prepare(wav.from_pcm16(tone), 24_000))
        assert np.abs(np.frombuffer(once, "<i2").astype(int) - np.frombuffer(whole, "<i2")).max() <= 1


def test_half_a_sample_is_refused():
    buffer = InputBuffer()
    with pytest.raises(BadRequest, match="whole number"):
        buffer.append(b"abc")
    assert buffer.end == 0
