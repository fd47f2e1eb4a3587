"""Streamed equals offline, batched equals alone; on vocoders of both kinds with random weights, of several shapes."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import seeded
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.audio.wav import from_pcm16, to_pcm16
from omni.vocoder import render as rendering
from omni.vocoder.hifigan import VocoderConfigError
from omni.vocoder.render import offline, render
from omni.vocoder.source_filter import SourceFilter
from omni.vocoder.streaming import (
    Chunk,
    ChunkError,
    ChunkPlanner,
    ChunkReply,
    context_frames,
    history_frames,
    samples_per_frame,
)

SHAPES = [*seeded.CONFIGS, *seeded.SOURCE_FILTERS, "tiny"]


def planner(vocoder, first_chunk: float = 3, chunk: float = 12, growth: float = 2) -> ChunkPlanner:
    return ChunkPlanner.of(vocoder.config, first_chunk=first_chunk, chunk=chunk, growth=growth)


def stream(vocoder, units: list[int], arrivals: list[int], plan: ChunkPlanner) -> bytes:
    """Units arrive in groups of `arrivals`, round and round; every chunk is vocoded at once."""
    pcm, sent, step = b"", 0, 0
    while not plan.done:
        if sent < len(units):
            plan.push(units[sent : sent + arrivals[step % len(arrivals)]])
            sent += arrivals[step % len(arrivals)]
        else:
            plan.finish()
        step += 1
        if chunk := plan.next():
            pcm += answer(vocoder, plan, chunk).pcm
    return pcm


def answer(vocoder, plan: ChunkPlanner, chunk: Chunk) -> ChunkReply:
    (reply,) = render(vocoder, [chunk])
    assert isinstance(reply, ChunkReply)
    assert plan.accept(reply)
    return reply


def assert_same_sound(pcm: bytes, expected: bytes) -> None:
    """The same number of samples, each within one step of int16."""
    assert len(pcm) == len(expected)
    difference = np.frombuffer(pcm, "<i2").astype(int) - np.frombuffer(expected, "<i2")
    assert np.abs(difference).max(initial=0) <= 1


@settings(deadline=None, max_examples=120, derandomize=True)
@given(
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 3),
    units=st.lists(st.integers(0, 29), max_size=60),
    arrivals=st.lists(st.integers(1, 25), min_size=1, max_size=8),
    first_chunk=st.integers(1, 30),
    ratio=st.sampled_from([1, 4, math.inf]),
    growth=st.sampled_from([1, 2]),
)
def test_streamed_equals_offline(shape, seed, units, arrivals, first_chunk, ratio, growth):
    vocoder = seeded.vocoder(shape, seed)
    plan = planner(vocoder, first_chunk, first_chunk * ratio, growth)
    assert_same_sound(stream(vocoder, units, arrivals, plan), to_pcm16(offline(vocoder, units)))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    shape=st.sampled_from(SHAPES),
    answers=st.lists(st.lists(st.integers(0, 29), min_size=1, max_size=50), min_size=2, max_size=5),
)
def test_batched_equals_alone(shape, answers):
    """Chunks of several answers, some at their start, some in the middle, some at their end, in one call."""
    vocoder = seeded.vocoder(shape)
    plans = [planner(vocoder, first_chunk=2 + i, chunk=6 + 3 * i) for i in range(len(answers))]
    for plan, units in zip(plans, answers, strict=True):
        plan.push(units)
        plan.finish()
    sounds = [b""] * len(answers)
    while chunks := {i: chunk for i, plan in enumerate(plans) if (chunk := plan.next())}:
        for (i, chunk), reply in zip(chunks.items(), render(vocoder, list(chunks.values())), strict=True):
            (alone,) = render(vocoder, [chunk])
            assert isinstance(reply, ChunkReply)
            assert isinstance(alone, ChunkReply)
            assert reply.durations == alone.durations
            assert_same_sound(reply.pcm, alone.pcm)
            plans[i].accept(reply)
            sounds[i] += reply.pcm
    for sound, units in zip(sounds, answers, strict=True):
        assert_same_sound(sound, to_pcm16(offline(vocoder, units)))


def test_streamed_equals_offline_in_the_published_shape():
    vocoder = seeded.vocoder("full", seed=4242)
    units = np.random.default_rng(11).integers(0, 1000, 24).tolist()
    plan = planner(vocoder, first_chunk=2, chunk=4)
    assert_same_sound(stream(vocoder, units, [5], plan), to_pcm16(offline(vocoder, units)))


@pytest.mark.parametrize("shape", [*seeded.CONFIGS, "tiny", "full"])
def test_the_context_is_what_a_frame_is_measured_to_hear(shape):
    """The gradient of one frame's samples reaches exactly `context_frames` frames to the farther side."""
    config = seeded.FULL_CONFIG if shape == "full" else seeded.vocoder(shape).config
    vocoder = type(seeded.vocoder("tiny"))(config).double()  # in float32 the farthest frames underflow
    context, hop = context_frames(config), samples_per_frame(config)
    middle = context + 3
    features = torch.randn(1, config["model_in_dim"], 2 * middle + 1, dtype=torch.float64, requires_grad=True)
    samples = vocoder.vocode(features)[0, middle * hop : (middle + 1) * hop]
    (samples * torch.randn_like(samples)).sum().backward()
    heard = features.grad.abs().sum(dim=(0, 1)).nonzero().flatten() - middle
    assert max(-int(heard.min()), int(heard.max())) == context


@pytest.mark.parametrize("shape", seeded.SOURCE_FILTERS)
def test_a_source_filter_hears_no_farther_than_it_says(shape):
    """Other units beyond `history_frames` and `context_frames` leave a frame as it is; nearer ones do not."""
    vocoder = seeded.vocoder(shape)
    history, context = history_frames(vocoder.config), context_frames(vocoder.config)
    hop, size = samples_per_frame(vocoder.config), history + context + 5
    middle, ends = history + 2, [0, size]
    units = torch.randint(0, 30, (size,), generator=torch.Generator().manual_seed(1))
    others = (units + 7) % 30

    def frame(start: int, stop: int) -> torch.Tensor:
        """The samples of the middle frame where only frames start … stop are as they were."""
        row = others.clone()
        row[start:stop] = units[start:stop]
        at = torch.tensor([middle])
        samples, _ = vocoder.vocode(row[None], torch.tensor([size]), at, torch.zeros(1, dtype=torch.float64), at)
        return samples[0, middle * hop : (middle + 1) * hop]

    whole = frame(*ends)
    torch.testing.assert_close(frame(middle - history, middle + context + 1), whole, rtol=0, atol=2e-6)
    nearest = frame(middle - history // 2, size) if history > 2 else frame(middle, size)
    assert (nearest - whole).abs().max() > 1e-5
    if context:
        assert (frame(0, middle + 1) - whole).abs().max() > 1e-5


def test_a_config_that_lacks_something_is_told_what():
    lacking = {key: value for key, value in seeded.SOURCE_FILTERS["source-filter"].items() if key != "prosody"}
    with pytest.raises(VocoderConfigError, match="needs prosody"):
        SourceFilter(lacking)


def test_a_long_answer_keeps_its_phase():
    """A minute of speech in chunks: what rounding does to one pitch must not add up."""
    vocoder, units = seeded.vocoder("source-filter"), np.random.default_rng(7).integers(0, 30, 3000).tolist()
    pcm = stream(vocoder, units, [25], planner(vocoder, 6, 80))
    assert np.abs(np.frombuffer(pcm, "<i2")).max() > 2000
    assert_same_sound(pcm, to_pcm16(offline(vocoder, units)))


def test_the_pulses_go_on_where_the_last_chunk_left_them():
    """Without the phase that a chunk brings along, the voice would start its cycle anew: another sound."""
    vocoder, units = seeded.vocoder("source-filter"), np.random.default_rng(3).integers(0, 30, 60).tolist()
    plan = planner(vocoder, 3, 3, 1)
    plan.push(units)
    first = plan.next()
    assert first
    answer(vocoder, plan, first)
    second = plan.next()
    assert second
    assert second.phase != 0.0
    (kept,), (lost,) = render(vocoder, [second]), render(vocoder, [replace(second, phase=second.phase + 0.5)])
    assert isinstance(kept, ChunkReply)
    assert isinstance(lost, ChunkReply)
    assert kept.pcm != lost.pcm


@pytest.mark.parametrize("case", ["A", "B", "C", "single"])
def test_offline_is_the_recorded_waveform_of_fairseq(case):
    golden = np.load(seeded.GOLDEN / "tiny.npz")
    units = golden[f"{case}_units"].tolist()
    np.testing.assert_allclose(offline(seeded.vocoder("tiny"), units), golden[f"{case}_dur_wav"], atol=1e-5)
    (reply,) = render(seeded.vocoder("tiny"), [Chunk.whole(units)])
    assert isinstance(reply, ChunkReply)
    assert list(reply.durations) == golden[f"{case}_durations"].tolist()


def test_isolated_chunks_are_the_recorded_ones_and_not_the_offline_waveform():
    """The published server vocodes every 40 units alone. Reproduced, as the fault that context cures."""
    vocoder, golden = seeded.vocoder("tiny"), np.load(seeded.GOLDEN / "tiny.npz")
    units = golden["C_units"].tolist()
    pieces = [units[i : i + 40] for i in range(0, len(units), 40)]
    isolated = np.concatenate([offline(vocoder, piece) for piece in pieces])
    np.testing.assert_allclose(isolated, golden["C_chunk40_wav"], atol=1e-5)

    replies = render(vocoder, [Chunk.whole(piece) for piece in pieces])
    durations = np.concatenate([reply.durations for reply in replies if isinstance(reply, ChunkReply)])
    assert durations.tolist() == golden["C_chunk40_durations"].tolist()
    assert np.flatnonzero(durations != golden["C_durations"]).tolist() == [38, 39, 41, 78, 79, 80, 81]
    assert len(isolated) != len(offline(vocoder, units))

    streamed = stream(vocoder, units, [40], planner(vocoder, 40, 40))
    np.testing.assert_allclose(from_pcm16(streamed), golden["C_dur_wav"], atol=1.5 / 32768)


def test_a_reply_asked_again_is_the_same_reply():
    vocoder = seeded.vocoder("tiny")
    plan = planner(vocoder)
    plan.push(range(30))
    chunk = plan.next()
    assert chunk
    assert render(vocoder, [chunk]) == render(vocoder, [chunk])


def test_a_duration_decided_elsewhere_is_kept():
    """Another machine may round a duration otherwise; what the listener has heard stays as it was."""
    vocoder = seeded.vocoder("tiny")
    (free,) = render(vocoder, [Chunk.whole(range(6))])
    assert isinstance(free, ChunkReply)
    decided = (free.durations[0] + 2, free.durations[1])
    chunk = Chunk(number=0, units=tuple(range(6)), skip_frames=1, first=True, final=True, durations=decided)
    (bound,) = render(vocoder, [chunk])
    assert isinstance(bound, ChunkReply)
    assert bound.durations == decided + free.durations[2:]
    assert len(bound.pcm) == 2 * 320 * (sum(bound.durations) - 1)


@pytest.mark.parametrize("unit", [-1, 1000], ids=["negative", "blank"])
def test_a_unit_out_of_range_fails_its_own_chunk_only(unit):
    vocoder = seeded.vocoder("tiny")
    good, bad, other = render(vocoder, [Chunk.whole([1, 2]), Chunk.whole([3, unit]), Chunk.whole([4])])
    assert isinstance(bad, ChunkError)
    assert f"unit {unit} is not one of the vocoder's 0 … 999" in str(bad)
    assert [good] == render(vocoder, [Chunk.whole([1, 2])])
    assert isinstance(other, ChunkReply)
    with pytest.raises(ChunkError, match="not one of"):
        offline(vocoder, [3, unit])


def test_an_output_that_is_not_finite_is_an_error_and_no_sound():
    vocoder = type(seeded.vocoder("one-stage"))(seeded.CONFIGS["one-stage"]).requires_grad_(False)
    vocoder.conv_post.bias.fill_(math.nan)
    (outcome,) = render(vocoder, [Chunk.whole([1, 2, 3])])
    assert isinstance(outcome, ChunkError)
    assert "not finite" in str(outcome)


def test_a_chunk_planned_for_a_vocoder_that_hears_less_is_refused():
    vocoder = seeded.vocoder("tiny")
    chunk = Chunk(number=4, units=(1, 2, 3), skip_frames=0, first=True, final=False, context_frames=7)
    (outcome,) = render(vocoder, [chunk])
    assert isinstance(outcome, ChunkError)
    assert "Chunk 4 holds back 7 frames; this vocoder needs 21" in str(outcome)
    chunk = Chunk(4, tuple(range(9)), skip_frames=7, first=False, final=True, durations=(1,) * 7)
    (outcome,) = render(vocoder, [chunk])
    assert isinstance(outcome, ChunkError)
    assert "Chunk 4 brings 7 frames of what came before; this vocoder needs 21" in str(outcome)


def test_a_chunk_whose_certain_frames_are_none_gets_durations_and_no_sound():
    vocoder = seeded.vocoder("tiny")
    chunk = Chunk(number=0, units=(1, 2, 3), skip_frames=0, first=True, final=False, context_frames=21)
    (reply,) = render(vocoder, [chunk])
    assert isinstance(reply, ChunkReply)
    assert reply.pcm == b""
    assert len(reply.durations) == 3


def test_no_units_are_no_samples_and_no_chunks_are_no_replies():
    vocoder = seeded.vocoder("tiny")
    assert offline(vocoder, []).shape == (0,)
    assert render(vocoder, []) == []


def test_only_what_the_new_samples_hear_is_vocoded(monkeypatch):
    """The work of a chunk in mid-answer is its new frames and the context on both sides, rounded up to 16."""
    vocoder = seeded.vocoder("tiny")
    widths = []
    fill = rendering._fill

    def watched(window, width):
        widths.append((len(window.frames), width))
        return fill(window, width)

    monkeypatch.setattr(rendering, "_fill", watched)
    plan = planner(vocoder, 4, 4)
    plan.push([unit % 1000 for unit in range(0, 2000, 37)])
    news = []
    while chunk := plan.next():
        news.append(len(answer(vocoder, plan, chunk).pcm) // 640)
    assert len(news) > 3
    needed = [min(21, sum(news[:i])) + new + 21 for i, new in enumerate(news)]
    assert widths == [(width, math.ceil(width / 16) * 16) for width in needed]


def test_a_fresh_worker_has_seen_the_widths_an_answer_begins_with():
    """The first chunks' widths are met before anybody waits, each once, and the sound after it is as ever."""
    vocoder, widths = seeded.vocoder("tiny"), []
    hook = vocoder.conv_pre.register_forward_pre_hook(lambda _, x: widths.append(x[0].shape[-1]))
    rendering.warm_up(vocoder)
    hook.remove()
    assert widths == [16, 32, 48]


def test_streamed_equals_offline_in_bfloat16():
    """Within a step or two of 16 bits of its own whole answer, and 40 dB from float32's: the durations are the same."""
    exact = seeded.vocoder("tiny")
    rough = copy.deepcopy(exact)
    for part in (rough.conv_pre, rough.ups, rough.resblocks, rough.conv_post):
        part.to(torch.bfloat16)
    units = np.random.default_rng(5).integers(0, 1000, 50).tolist()
    whole, wanted = offline(rough, units), offline(exact, units)
    streamed = from_pcm16(stream(rough, units, [7], planner(rough, 5, 20)))
    assert decibels(streamed, whole) > 60 and len(streamed) == len(wanted)
    assert decibels(whole, wanted) > 40


def decibels(sound: np.ndarray, wanted: np.ndarray) -> float:
    """Signal to noise."""
    return float(10 * np.log10((wanted**2).sum() / ((sound - wanted) ** 2).sum()))
