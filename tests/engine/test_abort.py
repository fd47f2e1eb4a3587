"""Turns come and go at any time: slots are given back within a step, and nobody notices the others."""

import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omni.engine.engine import Engine, EngineConfig
from omni.model.sampling import Sampling
from tests.engine.conftest import Answer, reference

LENGTHS = (1, 4, 9, 14)


@pytest.fixture(scope="module")
def wanted(omni, questions) -> dict[tuple[int, int], Answer]:
    """Every question's answer at every length, alone."""
    return {(i, n): reference(omni, each, sample(i, n)) for i, each in enumerate(questions) for n in LENGTHS}


def sample(question: int, length: int) -> Sampling:
    return Sampling(max_new_tokens=length, temperature=0.6 * (question % 2), seed=length)


@pytest.fixture(scope="module", params=[False, True], ids=["reads at once", "reads one step behind"])
def engine(request, omni) -> Engine:
    return Engine(omni, EngineConfig(num_slots=3, one_behind=request.param))


events = st.lists(
    st.tuples(
        st.integers(0, 3),  # steps before it
        st.sampled_from(["add", "add", "add", "abort"]),
        st.integers(0, 4),  # question, or which of the live turns to abort
        st.sampled_from(LENGTHS),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(events)
def test_random_arrivals_and_aborts(engine, questions, wanted, events):
    """Whatever comes when: an answer is what it is alone, an aborted turn says no more, and all slots end up free."""
    answers: dict[str, Answer] = {}
    asked: dict[str, tuple[int, int]] = {}
    aborted: set[str] = set()

    def step() -> None:
        for output in engine.step():
            assert output.turn_id not in aborted
            answers[output.turn_id].take(output)

    for number, (steps, kind, which, length) in enumerate(events):
        for _ in range(steps):
            step()
        live = [turn for turn in asked if turn not in aborted and answers[turn].finish is None]
        if kind == "add":
            turn = f"{number}"
            asked[turn], answers[turn] = (which, length), Answer()
            engine.add(turn, questions[which], sample(which, length))
        elif live:
            turn = live[which % len(live)]
            engine.abort(turn)
            aborted.add(turn)
    while not engine.idle:
        step()
    assert {turn: answers[turn] for turn in asked if turn not in aborted} == {
        turn: wanted[asked[turn]] for turn in asked if turn not in aborted
    }
    assert sorted(engine.scheduler.free) == [0, 1, 2]


def test_abort_under_load_frees_every_slot_in_one_step(omni, questions):
    """Twelve turns for three slots, in every state; all aborted: one step later all slots are free."""
    engine = Engine(omni, EngineConfig(num_slots=3))
    for i in range(12):
        engine.add(f"{i}", questions[i % 5], Sampling(max_new_tokens=30))
    for _ in range(3):
        engine.step()
    for i in range(12):
        engine.abort(f"{i}")
    assert engine.step() == []
    assert engine.idle and sorted(engine.scheduler.free) == [0, 1, 2]


def test_a_turn_may_be_asked_again_after_an_abort(omni, questions, wanted):
    """The same id, at once: the second answer is whole, and nothing of the first comes along."""
    engine = Engine(omni, EngineConfig(num_slots=1))
    engine.add("turn", questions[2], sample(2, 14))
    for _ in range(4):
        engine.step()
    engine.abort("turn")
    engine.add("turn", questions[0], sample(0, 9))
    answer = Answer()
    while not engine.idle:
        for output in engine.step():
            answer.take(output)
    assert answer == wanted[0, 9]


def test_a_live_turn_is_not_begun_twice(omni, questions):
    """Two answers under one id could not be told apart."""
    engine = Engine(omni)
    engine.add("turn", questions[0])
    with pytest.raises(ValueError, match="being answered already"):
        engine.add("turn", questions[0])


def test_the_stepping_thread_sleeps_until_something_is_added(omni, questions, wanted):
    """`wait` returns when another thread adds a turn, and the answers come out of that thread's steps."""
    engine, answer, steps = Engine(omni), Answer(), []

    def serve() -> None:
        while answer.finish is None:
            engine.wait()
            steps.append(1)
            for output in engine.step():
                answer.take(output)

    thread = threading.Thread(target=serve)
    thread.start()
    engine.add("turn", questions[1], sample(1, 9))
    thread.join(timeout=30)
    assert answer == wanted[1, 9]
    assert len(steps) == 9  # the prefill speaks the first token; no turn of the loop was empty
    assert not engine.wait(timeout=0)
