"""The published shapes are the published ones, and random weights can be run through everything."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench import questions, shapes, traces
from bench.naive import Naive
from bench.ours import Ours
from bench.pieces import listen
from omni.engine.engine import EngineConfig
from omni.model.omni import Omni
from omni.model.prompt import Utterance


def count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_published_shapes_have_the_published_size():
    """LLM 8,030 M, unit decoder 426 M, encoder 635 M, adaptor 21.5 M, vocoder 13.5 M."""
    config, encoder = shapes.published_config()
    with torch.device("meta"):
        omni = Omni(config, encoder, shapes.word_tokenizer(8))
    assert count(omni.llm) == 8_030_261_248
    assert count(omni.unit_decoder) == 425_649_129
    assert round(count(omni.encoder) / 1e6) == 635
    assert round(count(omni.adaptor) / 1e5) == 215
    assert config.speech_input == "padded"
    assert round(count(shapes.published_vocoder()) / 1e5) == 135  # duration predictor and unit embeddings too


@pytest.fixture(scope="module")
def small() -> shapes.Loaded:
    """The published architecture, narrow: for what is done with it, not for what it costs."""
    config, encoder = shapes.published_config(layers=1)
    block = replace(config.llm, width=64, num_heads=4, num_kv_heads=2, head_dim=16, ffn_width=96)
    speech = replace(block, num_layers=2, num_kv_heads=4)
    config = replace(config, llm=block, unit_decoder=speech, encoder_width=64, adaptor_hidden=32, vocab_size=1000)
    omni = shapes.published(config, replace(encoder, width=64, num_heads=2), "cpu", torch.float32)
    return shapes.Loaded("small", "", omni, shapes.published_vocoder(), lambda seed: traces.trace(seed, num_tokens=8))


def test_random_weights_speak_a_trace(small):
    """Ours and naive give a trace's length and units, with as many prompt tokens as the published template has."""
    (question,) = questions.load(1, 1.0)
    trace = small.trace(1)
    assert trace is not None
    heard = listen(Ours(small.omni, small.vocoder, EngineConfig(num_slots=1)).answer(question, 8, trace))
    assert len(heard.token_ids) == 8 and tuple(heard.units) == trace.until(7)
    assert heard.first_audio is not None and heard.text
    naive = listen(Naive(small.omni, small.vocoder).answer(question, 8, heard.token_ids, trace))
    assert (naive.text, naive.units) == (heard.text, heard.units)
    assert len(small.omni.prompt([Utterance("user", speech=question)])) == 45 + 1 + 17


def test_our_engine_keeps_the_vocoders_pace(small, monkeypatch):
    """A listener's buffer is counted in units of the length that the vocoder gives them."""
    assert Ours(small.omni, small.vocoder, EngineConfig(1)).engine.scheduler.config.seconds_per_unit == 0.03
    monkeypatch.setattr(small.vocoder, "config", {**small.vocoder.config, "frames_per_unit": 4.0})
    paced = Ours(small.omni, small.vocoder, EngineConfig(1)).engine.scheduler.config
    assert paced.seconds_per_unit == pytest.approx(0.08)


def test_traces_are_like_published_answers():
    """About 50 tokens of about 11 units; the same on every machine."""
    some = [traces.trace(seed) for seed in range(300)]
    tokens = [each.num_tokens for each in some]
    units = sum(len(each.until(each.num_tokens)) for each in some)
    assert 45 < np.mean(tokens) < 55 and max(tokens) <= 256
    assert 10 < units / sum(tokens) < 12
    assert traces.trace(7) == some[7]
