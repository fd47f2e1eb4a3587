"""Counted work: what a token costs does not grow with the answer. Counts, not times."""

from omni.engine.engine import Engine, EngineConfig
from omni.engine.scheduler import SchedulerConfig
from omni.engine.sequence import State
from omni.model.prompt import Utterance
from omni.model.sampling import Sampling


def work(engine: Engine) -> tuple[int, ...]:
    text, speech = engine.runner.text, engine.runner.speech.rest
    return text.calls, text.rows, speech.calls, speech.rows


def test_a_token_costs_the_same_from_the_1st_to_the_200th(omni):
    """Each step of three rows: one call of the LLM with 3 rows, one of the unit decoder with 75."""
    engine = Engine(omni, EngineConfig(num_slots=3))
    for i in range(3):
        engine.add(f"{i}", [Utterance("user", text="Count to a thousand. " * (i + 1))], Sampling(max_new_tokens=200))
    engine.step()  # prefill, and each row's first token
    costs = []
    while not engine.idle:
        before = work(engine)
        engine.step()
        costs.append(tuple(after - then for after, then in zip(work(engine), before, strict=True)))
    assert set(costs) == {(1, 3, 1, 75)}
    assert len(costs) == 199


def test_newcomers_are_read_in_one_call_within_the_budget(omni, questions):
    """Five prompts that came together: one call of the LLM a step, never more positions than a step may read."""
    scheduling = SchedulerConfig(5, 5, prefill_alone=60, encode_alone=10_000)
    engine = Engine(omni, EngineConfig(num_slots=5), scheduling)
    sequences = [engine.add(f"{i}", each, Sampling(max_new_tokens=1)) for i, each in enumerate(questions)]
    costs = []
    while not engine.idle:
        before, beside = work(engine), sum(each.state is State.RUNNING for each in sequences)
        engine.step()
        assert beside == 0, "one token each: nobody decodes"
        costs.append([after - then for after, then in zip(work(engine), before, strict=True)])
    assert sum(each.prompt_length for each in sequences) == sum(rows for _, rows, *_ in costs)
    assert {calls for calls, *_ in costs} == {1} and max(rows for _, rows, *_ in costs) == 60
    assert sum(rows for *_, rows in costs) == 5 * omni.config.upsample
    assert max(rows for *_, rows in costs) > omni.config.upsample, "two speak their first token in the same step"


def test_a_prompt_is_read_once(omni, questions):
    """As many rows as the prompt is long, whatever the number of pieces; forced tokens are read with it."""
    engine = Engine(omni, EngineConfig(num_slots=1))
    sequence = engine.add("turn", questions[0], Sampling(max_new_tokens=20), forced=(65, 66, 67, 68))
    while not sequence.tokens:
        engine.step()
    assert work(engine)[1] == sequence.prompt_length + 3
    assert work(engine)[3] == 4 * 25
