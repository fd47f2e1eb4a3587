"""Who has the floor, by probabilities alone: no sound, no clock but the windows."""

import pytest

from omni.audio.vad import WINDOW
from omni.serve.turn_taking import Paused, Resumed, Settings, Signal, Started, Stopped, TurnTaking

MS = 16  # samples
SETTINGS = Settings(threshold=0.5, prefix_padding_ms=100, silence_duration_ms=500, pause_ms=130, speech_ms=0)


def hear(taking: TurnTaking, probabilities: list[float]) -> list[tuple[int, Signal]]:
    """(number of the window, what happened in it)."""
    return [(i, signal) for i, each in enumerate(probabilities) if (signal := taking.hear(each)) is not None]


def test_a_question_starts_pauses_and_stops():
    """The signals come at their windows: 130 ms of silence are five windows, 500 ms sixteen."""
    happened = hear(TurnTaking(SETTINGS), [0.1] * 10 + [0.9] * 20 + [0.0] * 30)
    (started, start), (paused, pause), (stopped, stop) = happened
    assert (started, paused, stopped) == (10, 30 + 5 - 1, 30 + 16 - 1)
    assert start == Started(10 * WINDOW - 100 * MS)
    assert pause == Paused(35 * WINDOW) and stop == Stopped(35 * WINDOW)


def test_a_question_that_is_over_ends_where_it_paused():
    """So that an answer that was begun in the pause answers exactly what was said: the stop names the same sample."""
    for silence in (200, 500, 900):
        taking = TurnTaking(Settings(silence_duration_ms=silence, pause_ms=130))
        happened = [signal for _, signal in hear(taking, [0.9] * 20 + [0.0] * 40)]
        assert happened[1:] == [Paused(25 * WINDOW), Stopped(25 * WINDOW)]


def test_a_speaker_who_goes_on_resumes():
    """Every pause is announced, and withdrawn; one question comes of it."""
    probabilities = [0.9] * 10 + [0.0] * 8 + [0.9] * 10 + [0.0] * 8 + [0.9] * 10 + [0.0] * 20
    kinds = [type(signal) for _, signal in hear(TurnTaking(SETTINGS), probabilities)]
    assert kinds == [Started, Paused, Resumed, Paused, Resumed, Paused, Stopped]


def test_a_short_silence_is_no_pause():
    kinds = [type(signal) for _, signal in hear(TurnTaking(SETTINGS), [0.9] * 10 + [0.0] * 4 + [0.9] * 10)]
    assert kinds == [Started]


def test_a_pause_as_long_as_the_silence_is_only_the_end():
    taking = TurnTaking(Settings(silence_duration_ms=100, pause_ms=130))
    assert [type(signal) for _, signal in hear(taking, [0.9] * 10 + [0.0] * 9)] == [Started, Stopped]


def test_speech_fades_before_it_ends():
    """A little below the threshold it is still speech, but it does not begin there."""
    taking = TurnTaking(SETTINGS)
    assert hear(taking, [0.4] * 50) == []
    assert [type(signal) for _, signal in hear(taking, [0.6] * 2 + [0.4] * 50)] == [Started]


@pytest.mark.parametrize("first", [0, 2])
def test_padding_does_not_reach_into_what_was_before(first):
    """Neither before the stream's beginning nor into the question before."""
    taking = TurnTaking(Settings(prefix_padding_ms=2000, silence_duration_ms=100), first * WINDOW)
    (_, start), *_, (_, stop), (_, again) = hear(taking, [0.9] * 4 + [0.0] * 6 + [0.9] * 2)
    assert start == Started(first * WINDOW)
    assert isinstance(stop, Stopped) and again == Started(stop.sample)


def test_a_question_ended_from_elsewhere_is_over():
    taking = TurnTaking(SETTINGS)
    hear(taking, [0.9] * 5)
    taking.stop()
    assert not taking.speaking and hear(taking, [0.0] * 50) == []
    assert hear(taking, [0.9]) == [(0, Started(max(5 * WINDOW, 55 * WINDOW - 100 * MS)))]


@pytest.mark.parametrize("windows", [1, 2, 3, 5])
def test_speech_has_begun_once_it_has_lasted(windows):
    """And it has begun where its first window did, whatever the wait: a click is shorter, and begins nothing."""
    taking = TurnTaking(Settings(prefix_padding_ms=100, speech_ms=32 * windows))
    click = [0.0] * 8 + [0.9] * (windows - 1) + [0.0]
    assert hear(taking, click * 5) == []
    first = taking.position
    assert hear(taking, [0.9] * 10) == [(windows - 1, Started(first - 100 * MS))]


def test_clicks_do_not_add_up():
    """Only speech without a break counts."""
    assert hear(TurnTaking(Settings(speech_ms=64)), [0.9, 0.4] * 50) == []


def test_what_may_be_needed_is_kept():
    """Padding before the first window that may be speech, and nothing of the question before."""
    taking = TurnTaking(Settings(prefix_padding_ms=64, speech_ms=96))
    for probabilities, kept in (([0.0] * 9, 7), ([0.9] * 2, 7), ([0.0], 10), ([0.9], 10)):
        assert hear(taking, probabilities) == [] and taking.kept_from == kept * WINDOW
    assert hear(taking, [0.9] * 2) == [(1, Started(10 * WINDOW))]
