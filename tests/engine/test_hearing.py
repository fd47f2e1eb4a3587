"""Utterances that wait together are encoded together, and none is encoded twice. Batched = alone."""

import numpy as np
import pytest
import torch

from omni.engine import hearing
from omni.engine.engine import Engine, EngineConfig
from omni.engine.hearing import Hearing, batches
from omni.model.prompt import Utterance
from omni.model.sampling import Sampling
from tests.engine.conftest import reference, run


def noise(seconds: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * 16_000)).astype(np.float32)


def test_utterances_of_nearly_equal_length_share_a_call():
    """The longest is at most a quarter longer than the shortest, and a call has a limit."""
    lengths = {b"a": 100, b"b": 400, b"c": 120, b"d": 130, b"e": 410}
    assert batches(lengths) == [[b"a", b"c"], [b"d"], [b"b", b"e"]]
    assert batches(dict.fromkeys((b"a", b"b", b"c"), 100), together=200) == [[b"a", b"b"], [b"c"]]
    assert batches({}) == []


@pytest.mark.parametrize("which", ["omni", "golden"], ids=["true-length", "padded"])
def test_batched_equals_alone(request, which: str):
    """Equal and nearly equal lengths, and one far longer: each gets what it gets alone, in fewer calls."""
    omni = request.getfixturevalue(which)
    spoken = {hearing.key(x): x for x in map(noise, (2.0, 2.0, 2.13, 2.4, 7.0), range(5))}
    hears = Hearing(omni, 2**20)
    with torch.inference_mode():
        heard = hears(spoken)
    assert set(heard) == set(spoken)
    for name, samples in spoken.items():
        torch.testing.assert_close(heard[name], omni.speech_embeddings(samples), atol=2e-5, rtol=1e-4)
        assert len(heard[name]) == hears.length(samples)
    assert hears.rows == 5 and hears.calls < 5


def test_what_is_kept_is_bounded_and_the_least_recent_goes_first(omni):
    """Room for three seconds of speech: the utterance asked for again stays, the other makes room."""
    a, b, c = (noise(1.0, i) for i in range(3))
    per_second = 10 * omni.config.llm.width * 4
    hears = Hearing(omni, 2 * per_second)
    with torch.inference_mode():
        for samples in (a, b, a, c):
            hears({hearing.key(samples): samples})
    assert hears.rows == 3 and hears.bytes == 2 * per_second
    assert [hears.recall(hearing.key(x)) is not None for x in (a, b, c)] == [True, False, True]
    with torch.inference_mode():
        hears({b"long": noise(3.0, 9)})
    assert hears.bytes == 2 * per_second  # it fits nowhere, and nothing is thrown away for it
    hears.forget(hearing.key(a))
    assert hears.bytes == per_second and hears.recall(hearing.key(a)) is None


def test_questions_that_wait_together_are_encoded_together(omni):
    """Four questions of one length: one call of the encoder, and the answers of the reference."""
    sampling = Sampling(max_new_tokens=5)
    engine = Engine(omni, EngineConfig(num_slots=4))
    questions = [[Utterance("user", speech=noise(1.5, i))] for i in range(4)]
    for i, question in enumerate(questions):
        engine.add(f"{i}", question, sampling)
    answers = run(engine)
    assert answers == {f"{i}": reference(omni, each, sampling) for i, each in enumerate(questions)}
    assert (engine.runner.hearing.calls, engine.runner.hearing.rows) == (1, 4)


def test_running_rows_speak_in_every_step_while_many_questions_are_encoded(omni, questions):
    """Six newcomers with 4 s each: beside a running row, no step encodes more than its share, and none is left out."""
    engine = Engine(omni, EngineConfig(num_slots=8))
    engine.add("running", questions[1], Sampling(max_new_tokens=60))
    engine.step()
    for i in range(6):
        engine.add(f"{i}", [Utterance("user", speech=noise(4.0, i))], Sampling(max_new_tokens=3))
    heard, steps = engine.runner.hearing, []
    while heard.rows < 6:
        before = heard.rows
        turns = [output.turn_id for output in engine.step()]
        steps.append(heard.rows - before)
        assert "running" in turns
    assert max(steps) <= engine.scheduler.config.encode_beside // 40 and sum(steps) == 6


def test_an_utterance_that_cannot_be_encoded_ends_its_turn_alone(omni, monkeypatch):
    """Two questions in one call, one of which raises: the call is made again for each, and the other is answered."""
    good, bad = ([Utterance("user", speech=noise(1.0, i))] for i in (0, 1))
    wrong = omni.mel(bad[0].speech)
    forward = omni.encoder.forward

    def fails(mel, lengths=None):
        if any(torch.equal(row, wrong) for row in mel):
            raise RuntimeError("ears")
        return forward(mel, lengths)

    monkeypatch.setattr(omni.encoder, "forward", fails)
    engine = Engine(omni, EngineConfig(num_slots=2))
    engine.add("good", good, Sampling(max_new_tokens=4))
    engine.add("bad", bad, Sampling(max_new_tokens=4))
    answers = run(engine)
    assert answers["bad"].error.code == "row_failed" and "ears" in str(answers["bad"].error)
    assert answers["good"] == reference(omni, good, Sampling(max_new_tokens=4))
    assert sorted(engine.scheduler.free) == [0, 1]
