"""What goes wrong with one sequence ends that one, with a typed error; its neighbours never notice."""

import numpy as np
import pytest
import torch

from omni.engine import runner
from omni.engine.engine import Engine, EngineConfig
from omni.engine.sequence import BadSetting, OutOfMemory, State
from omni.model.prompt import Utterance
from omni.model.sampling import Sampling
from tests.engine.conftest import Answer, reference, run

SAMPLING = Sampling(max_new_tokens=10)


@pytest.mark.parametrize(
    ("code", "question", "sampling", "forced"),
    [
        ("prompt_too_long", [Utterance("user", text="word " * 60)], SAMPLING, ()),
        ("answer_too_long", [Utterance("user", text="Hello.")], Sampling(max_new_tokens=61), ()),
        ("answer_too_long", [Utterance("user", text="word " * 30)], Sampling(max_new_tokens=60), ()),
        ("answer_too_long", [Utterance("user", text="Hello.")], Sampling(max_new_tokens=0), ()),
        ("answer_too_long", [Utterance("user", text="Hello.")], SAMPLING, (65,) * 11),
        ("bad_prompt", [Utterance("assistant", text="Hello.")], SAMPLING, ()),
        ("bad_prompt", [], SAMPLING, ()),
        ("bad_prompt", [Utterance("user", text="Hello.")], SAMPLING, (259,)),
        ("bad_sampling", [Utterance("user", text="Hello.")], Sampling(temperature=float("nan")), ()),
        ("bad_sampling", [Utterance("user", text="Hello.")], Sampling(top_p=0.0), ()),
        ("speech_too_long", [Utterance("user", speech=np.zeros(480_001, np.float32))], SAMPLING, ()),
        ("not_finite", [Utterance("user", speech=np.full(16_000, np.nan, np.float32))], SAMPLING, ()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_a_turn_is_its_only_output(omni, questions, code, question, sampling, forced):
    """One output with the error and its code; the turn beside it is answered as ever; the slot serves the next."""
    engine = Engine(omni, EngineConfig(num_slots=2, max_tokens=200, max_answer=60))
    engine.add("good", questions[0], SAMPLING)
    engine.add("bad", question, sampling, forced)
    engine.add("next", questions[1], SAMPLING)
    answers = run(engine)
    assert answers["bad"].error.code == code and str(answers["bad"].error)
    assert (answers["bad"].tokens, answers["bad"].units) == ([], [])
    assert answers["good"] == reference(omni, questions[0], SAMPLING)
    assert answers["next"] == reference(omni, questions[1], SAMPLING)
    assert sorted(engine.scheduler.free) == [0, 1]


@pytest.mark.parametrize("one_behind", [False, True], ids=["reads at once", "reads one step behind"])
def test_a_row_that_turns_nan_ends_alone_and_leaves_a_clean_slot(omni, questions, one_behind):
    """NaN appears in the middle of an answer. The next turn in that slot must not meet it behind a mask."""
    engine = Engine(omni, EngineConfig(num_slots=2, one_behind=one_behind))
    engine.add("good", questions[0], SAMPLING)
    bad = engine.add("bad", questions[2], SAMPLING)
    answers = {name: Answer() for name in ("good", "bad", "next")}
    poisoned = False
    while not engine.idle:
        for output in engine.step():
            answers[output.turn_id].take(output)
        if bad.state is State.RUNNING and not poisoned:
            poisoned = True
            engine.runner.slots.v[:, bad.slot] = torch.nan
            engine.add("next", questions[1], SAMPLING)
    assert poisoned and answers["bad"].error.code == "not_finite"
    assert answers["good"] == reference(omni, questions[0], SAMPLING)
    assert answers["next"] == reference(omni, questions[1], SAMPLING)


def test_an_exception_in_one_row_ends_that_row(omni, questions, monkeypatch):
    """A step that raises is run again row by row: who raises alone ends, the others get the same token as ever."""
    choose = runner.sampler.choose

    def fails_for_seed_13(logits, samplings, steps):
        if any(each.seed == 13 and step == 4 for each, step in zip(samplings, steps, strict=True)):
            raise RuntimeError("thirteen")
        return choose(logits, samplings, steps)

    monkeypatch.setattr(runner.sampler, "choose", fails_for_seed_13)
    engine = Engine(omni, EngineConfig(num_slots=3))
    engine.add("good", questions[0], SAMPLING)
    engine.add("bad", questions[2], Sampling(max_new_tokens=10, seed=13))
    engine.add("fine", questions[1], SAMPLING)
    answers = run(engine)
    assert answers["bad"].error.code == "row_failed" and "thirteen" in str(answers["bad"].error)
    assert len(answers["bad"].tokens) == 4
    assert answers["good"] == reference(omni, questions[0], SAMPLING)
    assert answers["fine"] == reference(omni, questions[1], SAMPLING)


def test_an_exception_in_a_prefill_ends_that_turn(omni, questions, monkeypatch):
    """The encoder fails for one question; a text question beside it is answered."""
    monkeypatch.setattr(omni.encoder, "forward", lambda *_: 1 / 0)
    engine = Engine(omni)
    engine.add("spoken", questions[0], SAMPLING)
    engine.add("written", questions[1], SAMPLING)
    answers = run(engine)
    assert answers["spoken"].error.code == "row_failed"
    assert answers["written"] == reference(omni, questions[1], SAMPLING)


def test_an_exception_in_one_of_several_prompts_read_together_ends_that_turn(omni, questions, monkeypatch):
    """The call that raises is made again prompt by prompt: the others' first tokens are what they are alone."""
    engine = Engine(omni, EngineConfig(num_slots=3))
    prefill = engine.runner.prefill

    def fails_for_bad(pieces):
        results = prefill(pieces)
        if any(piece.sequence.turn_id == "bad" for piece in pieces):
            raise RuntimeError("thirteen")  # after it was computed: the same is written again
        return results

    monkeypatch.setattr(engine.runner, "prefill", fails_for_bad)
    for name, question in (("good", questions[4]), ("bad", questions[2]), ("fine", questions[1])):
        engine.add(name, question, SAMPLING)
    answers = run(engine)
    assert answers["bad"].error.code == "row_failed" and answers["bad"].tokens == []
    assert answers["good"] == reference(omni, questions[4], SAMPLING)
    assert answers["fine"] == reference(omni, questions[1], SAMPLING)
    assert sorted(engine.scheduler.free) == [0, 1, 2]


def test_who_was_aborted_before_it_failed_is_told_nothing(omni, questions, monkeypatch):
    """Its prefill raises after another thread has let it go."""
    engine = Engine(omni, EngineConfig(num_slots=2))

    def aborted_meanwhile(pieces):
        engine.abort("turn")
        raise RuntimeError("thirteen")

    monkeypatch.setattr(engine.runner, "prefill", aborted_meanwhile)
    engine.add("turn", questions[1], SAMPLING)
    assert engine.step() == [] and engine.step() == []
    assert engine.idle and sorted(engine.scheduler.free) == [0, 1]


def test_out_of_memory_at_start_names_the_setting(omni):
    """Longer slots than any machine holds: the message says what to lower."""
    with pytest.raises(OutOfMemory, match="lower num_slots, max_tokens or max_answer"):
        Engine(omni, EngineConfig(max_tokens=10**12))


def test_wrong_settings_stop_the_start():
    """With the choices there are."""
    with pytest.raises(BadSetting, match="Select one of float, int8, fp8, 8bit"):
        EngineConfig(weights="fp4")


@pytest.mark.parametrize(
    "name", ["num_slots", "max_rows", "max_tokens", "max_answer", "prefill_alone", "prefill_beside", "prefill_dry"]
)
@pytest.mark.parametrize("number", [0, -1])
def test_what_must_be_at_least_1_is_named_where_it_is_not(name, number):
    """prefill_alone=0 used to end in the scheduler's assertion, and max_rows=0 meant all slots."""
    with pytest.raises(BadSetting, match=f"{name} is {number}; it must be at least 1"):
        EngineConfig(**{name: number})


def test_more_rows_than_slots_are_refused():
    with pytest.raises(BadSetting, match=r"max_rows is 3; it must be at most num_slots \(2\)"):
        EngineConfig(num_slots=2, max_rows=3)
