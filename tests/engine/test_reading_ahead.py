"""What a question comes after is read while it is being said: the answer is the same, and only the question is left."""

import pytest

from omni.engine.engine import Engine, EngineConfig
from omni.engine.scheduler import SchedulerConfig
from omni.engine.sequence import State
from omni.model.prompt import Utterance
from omni.model.sampling import Sampling
from tests.engine.conftest import reference, run

SAMPLING = Sampling(max_new_tokens=6)


@pytest.fixture
def history(questions) -> list[Utterance]:
    """A long first turn and its answer."""
    system = Utterance("system", text="You are kind, brief, and never in a hurry. " * 12)
    return [system, *questions[0], Utterance("assistant", text="Yes, indeed: so it is.")]


def test_only_the_question_is_left_to_read(omni, questions, history):
    """At a worker that has never heard of the conversation; its earlier speech is encoded ahead too."""
    engine = Engine(omni, EngineConfig(num_slots=3))
    ahead = engine.read("ahead", history)
    assert run(engine)["ahead"].finish == "read"
    assert engine.runner.text.rows == ahead.prompt_length and engine.runner.hearing.rows == 1
    conversation = [*history, *questions[2]]
    sequence = engine.add("turn", conversation, SAMPLING)
    before = engine.runner.text.rows
    assert run(engine)["turn"] == reference(omni, conversation, SAMPLING)
    assert sequence.num_reused == ahead.prompt_length
    steps = len(reference(omni, conversation, SAMPLING).tokens) - 1
    assert engine.runner.text.rows - before == sequence.prompt_length - ahead.prompt_length + steps
    assert engine.runner.hearing.rows == 2


def test_the_published_template_too(golden, questions, history):
    """Padded speech, and a request behind it in every user's turn."""
    engine = Engine(golden, EngineConfig(num_slots=2))
    ahead = engine.read("ahead", history)
    run(engine)
    conversation = [*history, *questions[2]]
    sequence = engine.add("turn", conversation, SAMPLING)
    assert run(engine)["turn"] == reference(golden, conversation, SAMPLING)
    assert sequence.num_reused == ahead.prompt_length > 300


def test_what_a_slot_remembers_is_not_read_again(omni, questions, history):
    """Right after the session's own turn there is so little to read that no step is made for it."""
    engine = Engine(omni, EngineConfig(num_slots=2))
    engine.add("first", history[:2], SAMPLING)
    answer = Utterance("assistant", token_ids=tuple(run(engine)["first"].tokens))
    before = engine.runner.text.rows, engine.runner.hearing.rows
    engine.read("ahead", [*history[:2], answer])
    assert run(engine)["ahead"].finish == "read"
    assert (engine.runner.text.rows, engine.runner.hearing.rows) == before


def test_who_asks_comes_first(omni, questions, history):
    """A newcomer's first token does not wait for it: no piece is read while a prompt is, and small ones beside rows."""
    config = SchedulerConfig(3, 3, prefill_ahead=8)
    engine = Engine(omni, EngineConfig(num_slots=3), config)
    ahead = engine.read("ahead", history)
    engine.step()
    engine.step()
    read = ahead.num_prefilled
    assert 0 < read <= 16
    turn = engine.add("turn", questions[0], SAMPLING)
    engine.step()
    assert turn.state is State.RUNNING and ahead.num_prefilled == read
    engine.step()
    assert ahead.num_prefilled == read + 8
    answers = run(engine)
    assert answers["ahead"].finish == "read" and ahead.num_prefilled == ahead.prompt_length
    tokens = reference(omni, questions[0], SAMPLING).tokens
    assert answers["turn"].tokens == tokens[-len(answers["turn"].tokens) :]


def test_a_slot_stays_free_for_who_asks(omni, questions, history):
    """Of two slots it takes none while the other one is taken; of one, that one, where nobody is."""
    engine = Engine(omni, EngineConfig(num_slots=2))
    engine.add("first", questions[0], SAMPLING)
    ahead = engine.read("ahead", history)
    engine.step()
    assert ahead.slot is None and engine.running == 1
    assert run(engine)["ahead"].finish == "read"
    alone = Engine(omni, EngineConfig(num_slots=1))
    alone.read("ahead", history)
    assert run(alone)["ahead"].finish == "read"


def test_stopped_in_the_middle_it_leaves_what_it_read(omni, questions, history):
    """The question came sooner: its turn goes on where the reading was."""
    engine = Engine(omni, EngineConfig(num_slots=2), SchedulerConfig(2, 2, prefill_ahead=32))
    ahead = engine.read("ahead", history)
    engine.step()
    engine.abort("ahead")
    conversation = [*history, *questions[2]]
    turn = engine.add("turn", conversation, SAMPLING)
    assert run(engine)["turn"] == reference(omni, conversation, SAMPLING)
    assert turn.num_reused == 32 == ahead.num_prefilled
    assert engine.running == 0 and engine.idle


def test_what_cannot_be_read_is_told_once(omni, history):
    """As of any other conversation: the engine goes on."""
    engine = Engine(omni, EngineConfig(num_slots=2, max_tokens=64))
    engine.read("ahead", history)
    assert run(engine)["ahead"].error.code == "prompt_too_long"
    assert engine.idle and engine.running == 0


def test_aborted_in_the_step_that_ends_it_it_gives_nothing(omni, questions, monkeypatch):
    """From another thread, while the step runs: its last output used to come all the same."""
    engine = Engine(omni, EngineConfig(num_slots=2), SchedulerConfig(2, 2, prefill_ahead=512))
    prefill = engine.runner.prefill

    def aborted_meanwhile(pieces):
        engine.abort("ahead")
        return prefill(pieces)

    monkeypatch.setattr(engine.runner, "prefill", aborted_meanwhile)
    ahead = engine.read("ahead", [*questions[4], Utterance("assistant", text="So it is.")])
    assert engine.step() == []
    assert ahead.num_prefilled == ahead.prompt_length, "it had read all in that step"
    assert engine.step() == [] and engine.idle and sorted(engine.scheduler.free) == [0, 1]
