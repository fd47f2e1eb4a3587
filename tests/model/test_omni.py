"""The reference path: steps carry tokens, text and units; the same question gives the same answer."""

import numpy as np
import pytest

from omni.model.prompt import SPEECH, Utterance
from omni.model.sampling import Sampling


def question(seconds: float = 1.0) -> list[Utterance]:
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, int(seconds * 16_000)).astype(np.float32)
    return [Utterance("user", speech=samples)]


def test_steps_join_to_the_answer(tiny_omni):
    steps = list(tiny_omni.answer(question(), Sampling(max_new_tokens=12)))
    ids = [step.token_id for step in steps]
    assert "".join(step.text for step in steps) == tiny_omni.tokenizer.decode(ids, skip_special_tokens=True)
    assert any(step.units for step in steps)
    assert all(0 <= unit < tiny_omni.config.num_units for step in steps for unit in step.units)


def test_the_last_step_alone_says_why_it_ends(tiny_omni):
    steps = list(tiny_omni.answer(question(), Sampling(max_new_tokens=5)))
    assert [step.finish for step in steps[:-1]] == [None] * (len(steps) - 1)
    assert steps[-1].finish in ("stop", "length")


@pytest.mark.parametrize("settings", [Sampling(max_new_tokens=8), Sampling(0.9, 0.9, seed=3, max_new_tokens=8)])
def test_an_answer_resumed_from_its_first_tokens_is_the_same(tiny_omni, settings):
    """What recovery does on another worker: forced tokens, then the same choices."""
    whole = list(tiny_omni.answer(question(), settings))
    resumed = list(tiny_omni.answer(question(), settings, forced=[step.token_id for step in whole[:3]]))
    assert resumed == whole


def test_true_length_gives_ten_embeddings_a_second_and_padded_always_300(tiny_omni, golden):
    for seconds, number in ((0.05, 1), (1.0, 10), (2.51, 26)):
        samples = question(seconds)[0].speech
        assert len(tiny_omni.speech_embeddings(samples)) == number
        assert len(golden.speech_embeddings(samples)) == 300


def test_speech_takes_its_place_in_the_prompt(tiny_omni):
    conversation = question(1.0)
    ids = tiny_omni.prompt(conversation)
    embeds, speech = tiny_omni.prompt_embeds(conversation), tiny_omni.speech_embeddings(conversation[0].speech)
    at = ids.index(SPEECH)
    assert len(embeds) == len(ids) - 1 + len(speech)
    assert embeds[at : at + len(speech)].equal(speech)
    assert embeds[:at].equal(tiny_omni.splice(ids[:at], []))


def test_different_speech_gets_different_embeddings(tiny_omni):
    """The adaptor hears: two signals are not the same to it."""
    first, second = (tiny_omni.speech_embeddings(question(seconds)[0].speech) for seconds in (1.0, 1.2))
    assert not first.allclose(second[:10], atol=1e-4)
