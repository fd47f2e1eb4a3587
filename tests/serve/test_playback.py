"""How far a client may be ahead of its listener, and how fast it may send: the clock is passed in."""

import math

from omni.serve.allowance import Allowance
from omni.serve.playback import Playback


def test_what_nobody_reports_is_played_as_time_passes():
    playback = Playback(ahead=2.0)
    assert playback.wait(100.0) == 0
    playback.sent(1.5, 100.0)
    assert playback.wait(100.0) == 0
    playback.sent(1.5, 100.0)
    assert playback.wait(100.0) == 1.0 and playback.wait(100.5) == 0.5
    assert playback.wait(101.0) == 0


def test_a_client_that_reports_is_waited_for():
    """Time does not help then: only a report does."""
    playback = Playback(ahead=2.0)
    playback.sent(3.0, 0.0)
    playback.report(0.5)
    assert playback.wait(0.0) == playback.wait(1_000.0) == math.inf
    playback.report(1.2)
    assert playback.wait(0.0) == 0


def test_reports_go_forward_and_never_beyond_what_was_sent():
    playback = Playback(ahead=2.0)
    playback.sent(1.0, 0.0)
    playback.report(0.8)
    playback.report(0.3)
    assert playback.reported == 0.8
    playback.report(99.0)
    assert playback.reported == 1.0


def test_a_burst_then_the_rate():
    allowance = Allowance(burst=10.0, rate=1.25)
    assert allowance.take(10.0, 0.0) and not allowance.take(0.1, 0.0)
    assert not allowance.take(1.3, 1.0) and allowance.take(1.25, 1.0)
    assert not allowance.take(10.1, 1_000.0) and allowance.take(10.0, 1_000.0)
