"""A listener's loudspeaker, by the clock: does the sound arrive before it is needed? No torch, no network.

    playback = Playback()
    playback.receive(now, num_samples)      # as pieces arrive
    playback.ends                           # when the last sample received so far will have been heard

It starts with the first piece and plays in real time. A piece that comes after the end of what came before is an
underrun: the listener hears a gap, and goes on from there.
"""

from dataclasses import dataclass, field

SAMPLE_RATE = 16_000  # Hz
TOLERANCE = 0.02  # seconds: the buffer that every sound card has anyway


@dataclass
class Playback:
    started: float | None = None
    ends: float = 0.0
    seconds: float = 0.0  # of sound received
    gaps: list[float] = field(default_factory=list)  # seconds of each underrun

    def receive(self, now: float, num_samples: int) -> None:
        if num_samples == 0:
            return
        if self.started is None:
            self.started = self.ends = now
        late = now - self.ends
        if late > 0:
            self.ends = now
            if late > TOLERANCE:
                self.gaps.append(late)
        self.ends += num_samples / SAMPLE_RATE
        self.seconds += num_samples / SAMPLE_RATE
