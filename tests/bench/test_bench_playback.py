"""A listener hears gaps where sound comes late, and only there."""

import pytest

from bench.playback import SAMPLE_RATE, Playback

SECOND = SAMPLE_RATE


def test_sound_ahead_of_the_clock_has_no_gap():
    playback = Playback()
    for now in (10.0, 10.5, 11.2):
        playback.receive(now, SECOND)
    assert playback.gaps == [] and playback.started == 10.0 and playback.ends == 13.0


def test_late_sound_is_a_gap_and_playing_goes_on_from_there():
    """One second of sound, the next piece 0.3 s too late, the one after in time."""
    playback = Playback()
    playback.receive(0.0, SECOND)
    playback.receive(1.3, SECOND)
    playback.receive(2.2, SECOND)
    assert playback.gaps == pytest.approx([0.3])
    assert playback.ends == pytest.approx(3.3) and playback.seconds == 3.0


def test_a_moment_within_the_sound_cards_buffer_is_no_gap():
    playback = Playback()
    playback.receive(0.0, SECOND)
    playback.receive(1.015, SECOND)
    assert playback.gaps == [] and playback.ends == pytest.approx(2.015)


def test_nothing_is_not_sound():
    playback = Playback()
    playback.receive(5.0, 0)
    assert playback.started is None
