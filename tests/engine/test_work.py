"""Counted work: what a token costs does not grow with the answer. Counts, not times."""

from omni.engine.engine import Engine, EngineConfig
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
    engine.step()  # prefill: three calls, and each row's first token
    while engine.scheduler.admitted[0].num_launched == 0:
        engine.step()
    costs = []
    while not engine.idle:
        before = work(engine)
        engine.step()
        costs.append(tuple(after - then for after, then in zip(work(engine), before, strict=True)))
    assert set(costs) == {(1, 3, 1, 75)}
    assert len(costs) == 199


def test_a_prompt_is_read_once(omni, questions):
    """As many rows as the prompt is long, whatever the number of pieces; forced tokens are read with it."""
    engine = Engine(omni, EngineConfig(num_slots=1))
    sequence = engine.add("turn", questions[0], Sampling(max_new_tokens=20), forced=(65, 66, 67, 68))
    while not sequence.tokens:
        engine.step()
    assert work(engine)[1] == sequence.prompt_length + 3
    assert work(engine)[3] == 4 * 25
