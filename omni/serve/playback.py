"""How far an answer's sound is ahead of its listener, so that no more is sent than the bound. Decides only.

    playback = Playback(ahead=30.0)
    if (wait := playback.wait(now)) > 0: ...     # seconds; shorter when a report comes
    playback.sent(seconds, now)
    playback.report(played, now)                 # the client says what was heard

A client that never reports is taken to play as time passes from the first sound on.
"""

import math


class Playback:
    def __init__(self, ahead: float) -> None:
        self.seconds_sent = 0.0
        self.last_sent = 0.0  # seconds of the newest portion
        self.reported: float | None = None  # seconds
        self._ahead = ahead
        self._first_sent: float | None = None

    def sent(self, seconds: float, now: float) -> None:
        self.seconds_sent, self.last_sent = self.seconds_sent + seconds, seconds
        if self._first_sent is None:
            self._first_sent = now

    def report(self, played: float) -> None:
        """Never backwards, and never more than was sent."""
        self.reported = min(max(played, self.reported or 0.0), self.seconds_sent)

    def wait(self, now: float) -> float:
        """Until more may be sent; infinite where only a report can tell."""
        if self._first_sent is None:
            return 0.0
        if self.reported is not None:
            return 0.0 if self.seconds_sent - self.reported < self._ahead else math.inf
        return max(0.0, self._first_sent + self.seconds_sent - self._ahead - now)
