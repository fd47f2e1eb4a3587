"""The vocoder in few shapes is the vocoder: streamed equals offline, batched equals alone, and shapes are few."""

import logging

import numpy as np
import pytest
import seeded
import torch

from omni.audio.wav import to_pcm16
from omni.vocoder.recorded import WIDEST, Recorded
from omni.vocoder.render import offline, render
from omni.vocoder.streaming import Chunk, ChunkPlanner, ChunkReply


@pytest.fixture
def plain():
    return seeded.vocoder("tiny")


@pytest.fixture
def recorded(plain) -> Recorded:
    return Recorded(plain, batch=3)


def test_streamed_answers_equal_their_wholes(plain, recorded):
    """Answers of several lengths, their chunks together: first, middle and last ones, one of a single chunk."""
    generator = np.random.default_rng(3)
    answers = [generator.integers(0, 1000, size).tolist() for size in (90, 41, 8)]
    plans = []
    for units in answers:
        plan = ChunkPlanner.of(plain.config, first_chunk=5, chunk=20, growth=2)
        plan.push(units)
        plan.finish()
        plans.append(plan)
    sounds, batches = [b""] * len(answers), 0
    while chunks := {i: chunk for i, plan in enumerate(plans) if (chunk := plan.next())}:
        batches += 1
        for (i, _), reply in zip(chunks.items(), render(recorded, list(chunks.values())), strict=True):
            assert isinstance(reply, ChunkReply)
            plans[i].accept(reply)
            sounds[i] += reply.pcm
    for sound, units in zip(sounds, answers, strict=True):
        whole = to_pcm16(offline(plain, units))
        assert len(sound) == len(whole)
        assert np.abs(np.frombuffer(sound, "<i2").astype(int) - np.frombuffer(whole, "<i2")).max() <= 1
    assert batches > len(recorded.graphs.shapes) > 0
    assert set(recorded.graphs.shapes) <= set(recorded.every_shape())


def test_every_shape_is_met_before_the_first_chunk(recorded, plain, caplog):
    """Rows 3, 2 and 1 in every width up to the widest, the largest first; each runs the generator once."""
    met = []
    hook = plain.conv_pre.register_forward_pre_hook(lambda _, x: met.append((x[0].shape[0], x[0].shape[-1])))
    with caplog.at_level(logging.INFO):
        recorded.warm_up()
    hook.remove()
    assert met == recorded.every_shape() == list(recorded.graphs.shapes)
    assert met[0] == (3, WIDEST) and met[-1] == (1, 16) and len(met) == 3 * WIDEST // 16
    assert f"vocoder: {len(met)} of {len(met)} shapes are ready" in caplog.text


@pytest.mark.parametrize(
    ("units", "durations", "lengths"),
    [
        (torch.ones(2, 16), torch.ones(2, 16), [16, 9]),
        (torch.ones(1, 16), torch.full((1, 16), 2), [16]),
        (torch.ones(1, 17), torch.ones(1, 17), [17]),
        (torch.ones(4, 16), torch.ones(4, 16), [16] * 4),
        (torch.ones(1, WIDEST + 16), torch.ones(1, WIDEST + 16), [WIDEST + 16]),
    ],
    ids=["a short row", "long units", "an odd width", "too many rows", "too wide"],
)
def test_what_is_none_of_the_shapes_runs_as_ever(recorded, plain, units, durations, lengths):
    """The same samples, and no further shape is recorded."""
    told = units.long(), durations.long(), torch.tensor(lengths)
    assert torch.equal(recorded(*told), plain(*told))
    assert not recorded.graphs.shapes


def test_padded_rows_change_nothing(recorded, plain):
    """Two rows in the shape of three: the samples of two."""
    units = torch.arange(32).view(2, 16)
    told = units, torch.ones_like(units), torch.tensor([16, 16])
    given = recorded(*told)
    assert list(recorded.graphs.shapes) == [(2, 16)] and given.shape == (2, 16 * 320)
    torch.testing.assert_close(given, plain(*told))
    three = recorded(units[:1].expand(3, 16), torch.ones(3, 16), torch.tensor([16] * 3))
    torch.testing.assert_close(three, given[:1].expand_as(three), atol=1e-6, rtol=1e-5)


def test_a_unit_out_of_range_is_refused_before(recorded):
    """Its own chunk only, as ever: nothing checks units on the device any more."""
    good, bad = render(recorded, [Chunk.whole([1, 2]), Chunk.whole([3, 1000])])
    assert isinstance(good, ChunkReply) and "unit 1000" in str(bad)
