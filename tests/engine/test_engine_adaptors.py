"""Every utterance is heard by the adaptor of its sequence, whoever else is in the batch. Batched = alone."""

import numpy as np
import pytest
import torch

from omni.engine import hearing
from omni.engine.engine import Engine, EngineConfig
from omni.engine.hearing import Hearing
from omni.model import checkpoint, tiny
from omni.model.omni import Omni
from omni.model.prompt import Utterance
from omni.model.sampling import Sampling
from tests.engine.conftest import reference, run
from tests.model import further_adaptor

NAMES = ("", "law", "medical")
SAMPLING = Sampling(max_new_tokens=6)


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> Omni:
    """The tiny checkpoint with two further adaptors."""
    directory = tmp_path_factory.mktemp("several")
    tiny.write(directory)
    for seed, name in enumerate(NAMES[1:]):
        further_adaptor.put(directory, name, seed)
    return checkpoint.load(directory)


def noise(seconds: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * 16_000)).astype(np.float32)


def asked(seed: int, seconds: float = 1.5) -> list[Utterance]:
    return [Utterance("user", speech=noise(seconds, seed))]


@pytest.mark.parametrize(
    "seconds", [(2.0,) * 5, (2.0, 2.13, 2.2, 2.3, 2.4)], ids=["equal lengths", "nearly equal lengths"]
)
def test_utterances_of_several_adaptors_share_one_call_of_the_encoder(several, seconds):
    spoken, named = {}, {}
    for i, (length, name) in enumerate(zip(seconds, ("law", "", "medical", "", "law"), strict=True)):
        samples = noise(length, i)
        key = hearing.key(samples, name)
        spoken[key], named[key] = samples, name
    hears = Hearing(several, 2**20)
    with torch.inference_mode():
        heard = hears(spoken, named)
    assert (hears.calls, hears.rows) == (1, 5)
    for key, samples in spoken.items():
        alone = several.speech_embeddings(samples, named[key])
        torch.testing.assert_close(heard[key], alone, atol=2e-5, rtol=1e-4)


def test_the_same_words_are_kept_for_each_adaptor(several):
    """One recording, three sessions: nobody gets what another one's adaptor heard, now or later."""
    samples = noise(1.0, 0)
    keys = {name: hearing.key(samples, name) for name in NAMES}
    assert len(set(keys.values())) == 3 and keys[""] == hearing.key(samples)
    hears = Hearing(several, 2**20)
    with torch.inference_mode():
        hears(dict.fromkeys(keys.values(), samples), {keys[name]: name for name in NAMES})
    for name in NAMES:
        torch.testing.assert_close(hears.recall(keys[name]), several.speech_embeddings(samples, name))


def test_sequences_beside_each_other_answer_as_alone(several):
    """Six at once, three adaptors, the same question twice: what a slot remembers of one is no other one's."""
    engine = Engine(several, EngineConfig(num_slots=6))
    for seed in (1, 2):
        for name in NAMES:
            engine.add(f"{name}-{seed}", asked(seed), SAMPLING, adaptor=name)
    answers = run(engine)
    assert engine.runner.hearing.calls == 1
    for seed in (1, 2):
        for name in NAMES:
            assert answers[f"{name}-{seed}"] == reference(several, asked(seed), SAMPLING, adaptor=name)
    assert len({tuple(answers[f"{name}-1"].tokens) for name in NAMES}) == 3  # else this shows nothing


def test_a_slots_memory_is_of_what_its_adaptor_heard(several):
    """A conversation whose session changes to another adaptor is read again from its first word of speech on."""
    engine = Engine(several, EngineConfig(num_slots=1))
    conversation = [Utterance("system", text="Answer in a few words, and slowly."), *asked(3)]
    reused = {}
    for turn, name in (("first", "law"), ("again", "law"), ("other", "medical")):
        sequence = engine.add(turn, conversation, SAMPLING, adaptor=name)
        assert run(engine)[turn] == reference(several, conversation, SAMPLING, adaptor=name)
        reused[turn] = sequence.num_reused
    speech = next(i for i, key in enumerate(sequence.keys) if isinstance(key, tuple))
    assert reused["first"] == 0 and reused["again"] == sequence.prompt_length - 1 and reused["other"] == speech


def test_read_ahead_is_heard_by_the_sessions_adaptor(several):
    """What was read while the question was said serves that question."""
    engine = Engine(several, EngineConfig(num_slots=2))
    before = [*asked(4, 3.0), Utterance("assistant", text="A short answer was given to that.")]
    engine.read("ahead", before, adaptor="law")
    assert run(engine)["ahead"].finish == "read"
    question = [*before, *asked(5)]
    same = engine.add("same", question, SAMPLING, adaptor="law")
    assert run(engine)["same"] == reference(several, question, SAMPLING, adaptor="law")
    assert same.num_reused > 30


def test_an_answer_goes_on_with_the_same_adaptor_elsewhere(several):
    """Recovered = undisturbed: another engine gets the tokens that were heard, and the adaptor's name."""
    whole = reference(several, asked(6), SAMPLING, adaptor="law")
    engine = Engine(several, EngineConfig(num_slots=2))
    engine.add("rest", asked(6), SAMPLING, forced=whole.tokens[:3], adaptor="law")
    rest = run(engine)["rest"]
    assert (whole.tokens[:3] + rest.tokens, rest.units) == (whole.tokens, whole.units)
    assert whole.tokens != reference(several, asked(6), SAMPLING).tokens  # the checkpoint's own hears other words


def test_an_unknown_adaptor_ends_its_turn_alone(several):
    engine = Engine(several, EngineConfig(num_slots=2))
    engine.add("wrong", asked(7), SAMPLING, adaptor="lwa")
    engine.add("right", asked(7), SAMPLING, adaptor="law")
    answers = run(engine)
    assert answers["wrong"].error.code == "adaptor_not_found" and "law, medical" in str(answers["wrong"].error)
    assert answers["right"] == reference(several, asked(7), SAMPLING, adaptor="law")
    assert sorted(engine.scheduler.free) == [0, 1]
