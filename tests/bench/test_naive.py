"""The naive path is the reference path where the input is the same, and does the work it is said to do."""

import numpy as np
import pytest
import torch
from command_lines import ROOT

from bench import traces
from bench.naive import Naive
from bench.pieces import listen
from bench.shapes import load
from omni.audio.wav import to_pcm16
from omni.model import checkpoint
from omni.model.prompt import Utterance
from omni.model.sampling import Sampling
from omni.vocoder.render import offline

LIMIT = 12


@pytest.fixture(scope="module")
def tiny():
    return load("tiny")


@pytest.fixture(scope="module")
def question() -> np.ndarray:
    return np.random.default_rng(1).normal(0, 0.1, 16_000).astype(np.float32)


def reference(omni, question) -> tuple[list[int], str, list[int]]:
    steps = list(omni.answer([Utterance("user", speech=question)], Sampling(max_new_tokens=LIMIT)))
    units = [unit for step in steps for unit in step.units]
    return [step.token_id for step in steps], "".join(step.text for step in steps), units


def test_it_says_what_the_reference_says(tiny, question):
    """Where both hear the true length: the same tokens, text and units."""
    heard = listen(Naive(tiny.omni, tiny.vocoder, padded=False).answer(question, LIMIT))
    assert (heard.token_ids, heard.text, heard.units) == reference(tiny.omni, question)


def test_it_says_what_the_reference_says_padded(tiny, question):
    """The same on a checkpoint that pads (Llama 3's rope, three unit decoder layers)."""
    omni = checkpoint.load(ROOT / "tests" / "golden" / "checkpoint" / "Llama-3.1-8B-Omni-tiny")
    heard = listen(Naive(omni, tiny.vocoder).generate_pieces(question, LIMIT))
    assert (heard.token_ids, heard.text, heard.units) == reference(omni, question)


def test_chunks_are_vocoded_alone(tiny, question):
    """The sound is that of each chunk of at least ten new units by itself, and of the rest."""
    naive = Naive(tiny.omni, tiny.vocoder, padded=False)
    groups: list[list[int]] = [[]]
    pcm = b""
    for piece in naive.answer(question, LIMIT):
        groups[-1] += piece.units
        pcm += piece.pcm
        if piece.pcm:
            assert piece.finish or len(groups[-1]) >= 10
            groups.append([])
    assert len(groups) > 2
    assert pcm == b"".join(to_pcm16(offline(tiny.vocoder, group)) for group in groups)


def test_its_work_is_30_seconds_and_the_whole_answer_at_every_token(tiny, question):
    """3000 mel frames for one second; 1 + 2 + … + 12 tokens through the unit decoder, and 12 at the end."""
    naive = Naive(tiny.omni, tiny.vocoder)
    tiny_eos = tiny.omni.config.eos_token_ids
    heard = listen(naive.answer(question, LIMIT, forced=[65] * LIMIT))
    assert 65 not in tiny_eos and heard.token_ids == [65] * LIMIT
    assert naive.work.mel_frames == 3000
    assert naive.work.unit_rows == (LIMIT * (LIMIT + 1) // 2 + LIMIT) * tiny.omni.config.upsample
    ids = tiny.omni.prompt([Utterance("user", speech=question)])
    assert naive.work.text_rows == len(ids) - 1 + 300 + LIMIT - 1


def test_as_shipped_says_the_same(tiny, question):
    """The two costs that are off by default change nothing that is heard."""
    plain = listen(Naive(tiny.omni, tiny.vocoder, padded=False).answer(question, 4))
    shipped = listen(Naive(tiny.omni, tiny.vocoder, padded=False, as_shipped=True).answer(question, 4))
    assert (plain.text, plain.units, plain.pcm) == (shipped.text, shipped.units, shipped.pcm)


def test_a_trace_gives_the_units(tiny, question):
    """Random weights speak a trace's units, at the cost of their own."""
    wanted = traces.trace(3, tiny.omni.config.num_units, num_tokens=5)
    heard = listen(Naive(tiny.omni, tiny.vocoder).answer(question, 5, [65] * 5, wanted))
    assert tuple(heard.units) == wanted.until(4)


def test_weights_are_shared(tiny):
    """The naive path holds no second copy of the model."""
    naive = Naive(tiny.omni, tiny.vocoder)
    ours = tiny.omni.llm.layers[0].mlp.up_proj.weight
    assert naive.llm.layers[0].mlp.up_proj.weight.data_ptr() == ours.data_ptr()
    assert isinstance(ours, torch.nn.Parameter)
