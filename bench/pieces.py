"""What any contestant gives at a time, and what a listener's watch makes of it. No torch."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

SAMPLE_BYTES = 2
SAMPLE_RATE = 16_000  # Hz


@dataclass(frozen=True)
class Piece:
    """New tokens, their text and units, and what can be heard of the answer by now."""

    token_ids: tuple[int, ...] = ()
    text: str = ""
    units: tuple[int, ...] = ()
    pcm: bytes = b""  # int16 LE, 16 kHz
    finish: str | None = None


@dataclass
class Heard:
    """One answer with its times, in seconds since the question was handed over."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    units: list[int] = field(default_factory=list)
    pcm: bytearray = field(default_factory=bytearray)
    first_audio: float | None = None
    first_audio_cpu: float | None = None  # this process's CPU seconds by then
    tokens_before_audio: int = 0  # given before, or with, the first sound
    total: float = 0.0
    steps: list[float] = field(default_factory=list)  # when each token came

    @property
    def seconds(self) -> float:
        """Of speech."""
        return len(self.pcm) / SAMPLE_BYTES / SAMPLE_RATE


def listen(pieces: Iterable[Piece], *, until_audio: bool = False, clock: Callable[[], float] = time.monotonic) -> Heard:
    """Consume an answer by the clock; only to its first sound where nothing more is asked."""
    started, cpu, heard = clock(), time.process_time(), Heard()
    for piece in pieces:
        heard.total = clock() - started
        heard.token_ids += piece.token_ids
        heard.steps += [heard.total] * len(piece.token_ids)
        heard.text += piece.text
        heard.units += piece.units
        heard.pcm += piece.pcm
        if heard.first_audio is None:
            heard.tokens_before_audio += len(piece.token_ids)
            if piece.pcm:
                heard.first_audio = heard.total
                heard.first_audio_cpu = time.process_time() - cpu
                if until_audio:
                    break
    return heard
