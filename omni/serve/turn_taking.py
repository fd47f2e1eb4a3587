"""Who has the floor: from the probability of speech, window by window, to the beginning and the end of a question.

    taking = TurnTaking(Settings())
    for probability in ear.push(samples):
        match taking.hear(probability):
            case Started(sample): ...         # where the question begins, padding included
            case Paused(sample): ...          # it may be over: an answer can be begun, silently
            case Resumed(): ...               # it was not
            case Stopped(sample): ...         # it is over

Decides only. Its clock is the sound itself: time passes as windows are heard, so that a late network ends no question.
"""

from dataclasses import dataclass

from omni.audio.vad import WINDOW
from omni.audio.wav import SAMPLE_RATE

RELEASE = 0.15  # speech goes on until the probability is so much below the threshold, as in silero's own iterator


@dataclass(frozen=True)
class Settings:
    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    pause_ms: int = 64  # a silence after which the answer is begun; from silence_duration_ms on there is no such
    speech_ms: int = 64  # so much speech without a break is a beginning; less is a click, a cough, an echo


@dataclass(frozen=True)
class Started:
    sample: int  # where the question's audio begins, at 16 kHz since the stream's beginning


@dataclass(frozen=True)
class Paused:
    sample: int  # where the question's audio would end


@dataclass(frozen=True)
class Resumed:
    pass


@dataclass(frozen=True)
class Stopped:
    sample: int


Signal = Started | Paused | Resumed | Stopped


class TurnTaking:
    def __init__(self, settings: Settings, position: int = 0) -> None:
        self.settings = settings
        self.position = position  # samples heard
        self.speaking = False
        self._paused = False
        self._candidate: int | None = None  # where speech may have begun
        self._silent_from = 0  # where the last window with speech ended
        self._floor = position  # nothing before it belongs to the next question

    def hear(self, probability: float) -> Signal | None:
        """One more window. At most one thing happens in it."""
        start, self.position = self.position, self.position + WINDOW
        if not self.speaking:
            return self._await_speech(start, probability)
        if probability >= self.settings.threshold or (
            not self._paused and probability >= self.settings.threshold - RELEASE
        ):
            self._silent_from = self.position
            resumed, self._paused = self._paused, False
            return Resumed() if resumed else None
        return self._wait()

    @property
    def kept_from(self) -> int:
        """While nobody speaks: the samples from here on may belong to the next question."""
        start = self.position if self._candidate is None else self._candidate
        return max(self._floor, start - self._padding)

    @property
    def _padding(self) -> int:
        return self.settings.prefix_padding_ms * SAMPLE_RATE // 1000

    def stop(self, end: int | None = None) -> None:
        """The question ends here, or ended at a sample before; what comes after that is the next one's."""
        self.speaking = self._paused = False
        self._candidate = None
        self._floor = self.position if end is None else end

    def _await_speech(self, start: int, probability: float) -> Started | None:
        """It has begun once it has lasted; then it is where its first window was that it begins."""
        if probability < self.settings.threshold:
            self._candidate = None
            return None
        if self._candidate is None:
            self._candidate = start
        if (self.position - self._candidate) * 1000 < self.settings.speech_ms * SAMPLE_RATE:
            return None
        started = Started(self.kept_from)
        self.speaking, self._candidate, self._silent_from = True, None, self.position
        return started

    def _wait(self) -> Signal | None:
        silence = (self.position - self._silent_from) * 1000 // SAMPLE_RATE
        if silence >= self.settings.silence_duration_ms:
            end = self._end()
            self.stop(end)
            return Stopped(end)
        if silence >= self.settings.pause_ms and not self._paused:
            self._paused = True
            return Paused(self._end())
        return None

    def _end(self) -> int:
        """Where a question that is over ends, whether it was known at its pause or later: the same samples."""
        pause = -(-self.settings.pause_ms * SAMPLE_RATE // 1000 // WINDOW) * WINDOW
        return min(self.position, self._silent_from + pause)
