"""Who runs next, told by a clock that the tests move. No torch."""

import subprocess
import sys
from itertools import accumulate
from types import SimpleNamespace

import pytest

from omni.engine.scheduler import Piece, Scheduler, SchedulerConfig
from omni.engine.sequence import Sequence, Spoken, State

CONFIG = SchedulerConfig(
    num_slots=4, max_rows=4, prefill_alone=64, prefill_beside=16, prefill_dry=4, seconds_per_unit=0.1, first_chunk=5
)

SAMPLING = SimpleNamespace(max_new_tokens=50)  # omni.model.sampling brings torch


def waiting(name: str, length: int = 10) -> Sequence:
    return Sequence(name, (), SAMPLING, prompt_length=length, keys=[(name, i) for i in range(length)])


def spoken(name: str, *lengths: int) -> Sequence:
    """A prompt of nothing but utterances."""
    sequence = waiting(name, sum(lengths))
    stops = list(accumulate(lengths))
    sequence.spoken = [Spoken(f"{name}{b}".encode(), b - n, b) for n, b in zip(lengths, stops, strict=True)]
    return sequence


def names(sequences) -> list[str]:
    return [each.turn_id for each in sequences]


def run(scheduler: Scheduler, now: float):
    """One step as the engine does it: pieces are prefilled, and whoever is done with that runs."""
    plan = scheduler.schedule(now)
    for piece in plan.prefill:
        scheduler.prefilled(piece)
    return plan


def running(scheduler: Scheduler, *names: str) -> list[Sequence]:
    sequences = [waiting(name) for name in names]
    for each in sequences:
        scheduler.add(each)
    while any(each.state is not State.RUNNING for each in sequences):
        run(scheduler, 0.0)
    return sequences


def test_admits_in_order_of_arrival_while_slots_are_free():
    """Five turns for four slots: the fifth waits until somebody leaves, and takes that slot."""
    scheduler = Scheduler(CONFIG)
    sequences = running(scheduler, "a", "b", "c", "d")
    late = waiting("e")
    scheduler.add(late)
    assert run(scheduler, 0.0).prefill == []
    scheduler.remove(sequences[2])
    assert run(scheduler, 0.0).prefill == [Piece(late, 0, 10)]
    assert late.slot == 2


def test_a_long_prompt_is_read_in_pieces_beside_running_rows():
    """Running rows give a token in every step of a newcomer's prefill; pieces cover the prompt without a gap."""
    scheduler = Scheduler(CONFIG)
    running(scheduler, "a")
    scheduler.add(waiting("long", 50))
    plans = [run(scheduler, 0.0) for _ in range(4)]
    assert [(p.prefill[0].start, p.prefill[0].stop) for p in plans] == [(0, 16), (16, 32), (32, 48), (48, 50)]
    assert all(names(p.decode) == ["a"] for p in plans)


def test_alone_a_prompt_is_read_in_large_pieces():
    """Nobody waits for a step, so that it may be long."""
    scheduler = Scheduler(CONFIG)
    scheduler.add(waiting("long", 100))
    assert [run(scheduler, 0.0).prefill[0].stop for _ in range(2)] == [64, 100]


def test_several_newcomers_share_a_step_in_order():
    """The first is finished first; what is left of the budget goes to the next."""
    scheduler = Scheduler(CONFIG)
    for name in ("a", "b", "c"):
        scheduler.add(waiting(name, 40))
    assert [(p.sequence.turn_id, p.start, p.stop) for p in run(scheduler, 0.0).prefill] == [("a", 0, 40), ("b", 0, 24)]


def test_speech_is_encoded_before_its_prompt_is_read_and_little_of_it_beside_others():
    """A piece is cut only of what is heard by then; a step encodes less beside others, but always one utterance."""
    scheduler = Scheduler(SchedulerConfig(num_slots=8, max_rows=8, encode_alone=300, encode_beside=100, encode_dry=1))
    for name in ("a", "b", "c", "d"):
        scheduler.add(spoken(name, 40, 40))
    scheduler.add(spoken("long", 400))

    def encode(now: float) -> list[str]:
        plan = scheduler.schedule(now)
        for sequence, each in plan.encode:
            sequence.heard[each.key] = "embeddings"
        assert all(not piece.sequence.unheard for piece in plan.prefill)
        return [each.key.decode() for _, each in plan.encode]

    assert encode(0.0) == ["a40", "a80", "b40", "b80", "c40", "c80", "d40"]
    row = scheduler.admitted[0]
    row.state = State.RUNNING
    assert encode(0.0) == ["d80"]
    for name in ("e", "f"):
        scheduler.add(spoken(name, 40))
    assert encode(0.0) == ["long400"]
    scheduler.emitted(row, 20, now=0.0)
    assert encode(0.5) == ["e40"]
    assert encode(0.5) == ["f40"]
    assert encode(0.5) == []


def test_the_listeners_clock_starts_when_there_is_something_to_hear():
    """No buffer before the first chunk; then what was given out minus what was played."""
    scheduler = Scheduler(CONFIG)
    (a,) = running(scheduler, "a")
    scheduler.emitted(a, 4, now=1.0)
    assert scheduler.buffer(a, 2.0) is None
    scheduler.emitted(a, 6, now=2.0)
    assert scheduler.buffer(a, 2.0) == pytest.approx(1.0)
    assert scheduler.buffer(a, 2.7) == pytest.approx(0.3)
    a.played = (3.0, 0.2)  # its player was late
    assert scheduler.buffer(a, 3.5) == pytest.approx(0.3)


def test_who_is_far_ahead_yields_to_a_newcomer_and_comes_back():
    """While a newcomer is prefilled, the sequence with 5 s of buffer sits out; its buffer drains, and it runs again."""
    scheduler = Scheduler(CONFIG)
    ahead, near = running(scheduler, "ahead", "near")
    scheduler.emitted(ahead, 50, now=0.0)
    scheduler.emitted(near, 20, now=0.0)
    assert names(scheduler.schedule(0.0).decode) == ["near", "ahead"]
    scheduler.add(waiting("new", 100))
    assert names(scheduler.schedule(0.0).decode) == ["near"]
    assert names(scheduler.schedule(2.1).decode) == ["near", "ahead"]


def test_who_runs_dry_goes_first_and_shortens_the_prefill():
    """With two rows a step, the driest two run; a newcomer's piece beside them is small, but never nothing."""
    scheduler = Scheduler(SchedulerConfig(**{**vars(CONFIG), "max_rows": 2}))
    rows = running(scheduler, "a", "b", "c")
    for each, units in zip(rows, (25, 14, 20), strict=True):
        scheduler.emitted(each, units, now=0.0)
    scheduler.add(waiting("new", 40))
    plan = scheduler.schedule(1.0)
    assert names(plan.decode) == ["b", "c"]
    assert [(p.start, p.stop) for p in plan.prefill] == [(0, 4)]


def test_first_audio_goes_before_every_buffer():
    """A row that has not been heard yet runs before one that is dry."""
    scheduler = Scheduler(SchedulerConfig(**{**vars(CONFIG), "max_rows": 1}))
    heard, _ = running(scheduler, "heard", "new")
    scheduler.emitted(heard, 5, now=0.0)
    assert names(scheduler.schedule(0.5).decode) == ["new"]


def test_a_row_that_sits_out_is_not_starved_by_newcomers():
    """A new turn every step for a minute: the one that was far ahead never runs dry."""
    scheduler = Scheduler(CONFIG)
    (ahead,) = running(scheduler, "ahead")
    scheduler.emitted(ahead, 50, now=0.0)
    now, lowest = 0.0, 5.0
    while now < 60.0:
        scheduler.add(waiting("new", 30))
        plan = run(scheduler, now)
        for each in list(plan.decode):
            scheduler.emitted(each, 3, now)
            if each is not ahead:
                scheduler.remove(each)
        now += 0.1
        lowest = min(lowest, scheduler.buffer(ahead, now))
    assert lowest > CONFIG.run_dry


def test_abort_frees_a_waiting_and_a_running_turn():
    """Both are forgotten at once."""
    scheduler = Scheduler(CONFIG)
    sequences = running(scheduler, "a", "b", "c", "d")
    late = waiting("late")
    scheduler.add(late)
    scheduler.remove(late)
    for each in sequences:
        scheduler.remove(each)
    assert scheduler.idle and sorted(scheduler.free) == [0, 1, 2, 3]
    assert scheduler.schedule(0.0).empty


def test_needs_no_torch():
    """The scheduler decides in plain objects; so does what it is told about."""
    code = "import sys, omni.engine.scheduler; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
