"""The planner alone, with a toy vocoder whose samples say which frames and units they were made of."""

import json
import math
import pickle
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seeded import CONFIGS, FULL_CONFIG

from omni.model.mini import SHIPPED
from omni.vocoder import streaming
from omni.vocoder.streaming import Chunk, ChunkError, ChunkPlanner, ChunkReply

CONTEXT = 5
STEADY = 3  # a unit that, among its like, always lasts one frame


def toy_duration(units: list[int], i: int) -> int:
    """1 … 4 frames; depends on two units either side, and on where the units end."""
    return 1 + sum((j - i + 4) * (units[j] + 1 if 0 <= j < len(units) else 0) for j in range(i - 2, i + 3)) % 4


def toy_frames(units: list[int], durations: list[int]) -> list[int]:
    return [unit for unit, duration in zip(units, durations, strict=True) for _ in range(duration)]


def toy_samples(frames: list[int], context: int) -> list[int]:
    """One sample a frame: a hash of the frames within `context` of it, silence outside."""
    around = [0] * context + [frame + 1 for frame in frames] + [0] * context
    return [hash(tuple(around[i : i + 2 * context + 1])) & 0x7FFF for i in range(len(frames))]


def toy_offline(units: list[int], context: int = CONTEXT) -> bytes:
    return to_bytes(toy_samples(toy_frames(units, [toy_duration(units, i) for i in range(len(units))]), context))


def toy_render(chunk: Chunk) -> ChunkReply:
    units = list(chunk.units)
    known = len(chunk.durations)
    durations = list(chunk.durations) + [toy_duration(units, i) for i in range(known, len(units))]
    samples = toy_samples(toy_frames(units, durations), chunk.context_frames)
    return ChunkReply(
        chunk.number,
        to_bytes(samples[chunk.skip_frames : chunk.certain_frames(tuple(durations))]),
        tuple(durations),
    )


def to_bytes(samples: list[int]) -> bytes:
    return b"".join(sample.to_bytes(2, "little") for sample in samples)


def planner(first_chunk: float = 3, chunk: float = 12, context: int = CONTEXT, **options) -> ChunkPlanner:
    return ChunkPlanner(context, first_chunk=first_chunk, chunk=chunk, samples_per_frame=1, **options)


def drain(plan: ChunkPlanner) -> tuple[bytes, list[Chunk]]:
    pcm, chunks = b"", []
    while chunk := plan.next():
        reply = toy_render(chunk)
        assert plan.accept(reply)
        chunks.append(chunk)
        pcm += reply.pcm
    return pcm, chunks


@settings(deadline=None, max_examples=300, derandomize=True)
@given(
    units=st.lists(st.integers(0, 9), max_size=120),
    arrivals=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    first_chunk=st.integers(1, 40),
    ratio=st.sampled_from([1, 4, math.inf]),
    growth=st.sampled_from([1, 1.5, 2, 10]),
    frames_per_unit=st.sampled_from([1, 1.5, 4]),
    busy_steps=st.integers(0, 3),
    context=st.sampled_from([0, 1, CONTEXT, 21]),  # with 0 or 1, a unit may outlast all context
)
def test_the_joined_chunks_are_the_offline_answer(
    units, arrivals, first_chunk, ratio, growth, frames_per_unit, busy_steps, context
):
    """Whatever arrives when, however large the chunks, and however many arrivals pass while a chunk is vocoded."""
    plan = planner(first_chunk, first_chunk * ratio, context, growth=growth, frames_per_unit=frames_per_unit)
    pcm, sent, step, due = b"", 0, 0, 0
    while not plan.done:
        if sent < len(units):
            count = arrivals[step % len(arrivals)]
            plan.push(units[sent : sent + count])
            sent += count
        else:
            plan.finish()
        step += 1
        if chunk := plan.next():
            due = step + busy_steps
        if plan.in_flight and (step >= due or sent >= len(units)):
            chunk = plan.in_flight
            reply = toy_render(chunk)
            assert plan.accept(reply)
            pcm += reply.pcm
    assert pcm == toy_offline(units, context)
    assert plan.next() is None
    assert plan.frames_sent * 2 == len(pcm)


def test_an_answer_without_units_is_done_without_a_chunk():
    plan = planner()
    assert plan.next() is None
    assert not plan.done
    plan.finish()
    assert plan.done
    assert plan.next() is None


def test_one_unit_is_one_chunk():
    plan = planner()
    plan.push([7])
    assert plan.next() is None
    plan.finish()
    pcm, chunks = drain(plan)
    assert [(chunk.units, chunk.first, chunk.final) for chunk in chunks] == [((7,), True, True)]
    assert pcm == toy_offline([7])
    assert plan.done


def test_frames_still_owed_are_sent_when_the_answer_ends_without_new_units():
    units = [3, 1, 4, 1, 5, 9, 2, 6] * 3
    plan = planner()
    plan.push(units)
    before, _ = drain(plan)
    assert before
    assert not plan.done
    plan.finish()
    after, chunks = drain(plan)
    assert [chunk.final for chunk in chunks] == [True]
    assert before + after == toy_offline(units)


def test_first_audio_needs_no_more_than_the_wanted_units_and_the_look_ahead():
    """However large later chunks are: with a chunk of one unit, the first frame that is certain is asked for."""
    plan = planner(first_chunk=1, chunk=40, frames_per_unit=1)
    while not plan.next():
        plan.push([STEADY])
    assert plan.units_received == 1 + CONTEXT + streaming.DURATION_CONTEXT


def test_chunks_grow_from_the_first_to_the_largest():
    plan = planner(first_chunk=2, chunk=16, frames_per_unit=1)
    plan.push([STEADY] * 100)
    plan.finish()
    _, chunks = drain(plan)
    new_frames = [len(toy_render(chunk).pcm) // 2 for chunk in chunks]
    assert new_frames[:5] == [2, 4, 8, 16, 16]
    assert sum(new_frames) == 100


def test_a_chunk_without_certain_frames_teaches_durations_and_the_stream_goes_on():
    """Guessed to last eight frames, each unit lasts one: the first chunk brings no sound, later ones wait longer."""
    plan = planner(first_chunk=1, chunk=1, frames_per_unit=8)
    sizes = []
    for _ in range(40):
        plan.push([STEADY])
        if chunk := plan.next():
            reply = toy_render(chunk)
            sizes.append(len(reply.pcm) // 2)
            plan.accept(reply)
    plan.finish()
    drain(plan)
    assert sizes[0] == 0
    assert any(sizes)
    assert plan.frames_sent == 40


def test_at_most_one_chunk_is_in_flight_and_it_can_be_sent_again():
    """A lost reply is asked again with the very same chunk; the second copy of a reply is told apart."""
    plan = planner()
    plan.push([1, 2, 3] * 20)
    chunk = plan.next()
    assert chunk
    assert plan.next() is None
    assert plan.in_flight is chunk
    again = pickle.loads(pickle.dumps(chunk))
    assert toy_render(again) == toy_render(chunk)
    assert plan.accept(toy_render(again))
    assert not plan.accept(toy_render(chunk))
    assert plan.in_flight is None


def test_an_infinite_chunk_is_offline_vocoding():
    plan = planner(first_chunk=math.inf, chunk=math.inf)
    plan.push(range(9))
    assert plan.next() is None
    plan.push(range(9))
    plan.finish()
    _, chunks = drain(plan)
    assert chunks == [replace(Chunk.whole([*range(9), *range(9)]), context_frames=CONTEXT)]


def test_a_long_answer_sends_bounded_chunks():
    """Context does not pile up: no chunk carries more than its new frames, the context and the units they lie in."""
    plan = planner(first_chunk=4, chunk=4)
    plan.push([1, 2, 3, 4, 5, 6, 7] * 100)
    plan.finish()
    _, chunks = drain(plan)
    assert max(len(chunk.units) for chunk in chunks) < 4 * 4 + 3 * CONTEXT + 6


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda reply: replace(reply, durations=reply.durations[1:]), "durations for"),
        (lambda reply: replace(reply, durations=(0, *reply.durations[1:])), "durations for"),
        (lambda reply: replace(reply, pcm=reply.pcm[2:]), "bytes of PCM"),
        (lambda reply: replace(reply, pcm=reply.pcm + b"\0\0"), "bytes of PCM"),
    ],
    ids=["too-few-durations", "zero-duration", "too-short", "too-long"],
)
def test_a_reply_that_does_not_fit_its_chunk_is_refused(spoil, message):
    plan = planner()
    plan.push([1, 2, 3] * 20)
    chunk = plan.next()
    assert chunk
    with pytest.raises(ChunkError, match=message):
        plan.accept(spoil(toy_render(chunk)))
    assert plan.in_flight is chunk


def test_a_reply_may_not_change_a_duration_decided_before():
    plan = planner()
    plan.push([1, 2, 3] * 30)
    first = plan.next()
    assert first
    plan.accept(toy_render(first))
    second = plan.next()
    assert second
    reply = toy_render(second)
    with pytest.raises(ChunkError, match="already decided"):
        plan.accept(replace(reply, durations=(reply.durations[0] + 1, *reply.durations[1:])))


@pytest.mark.parametrize("sizes", [(0, 10), (20, 10), (math.nan, 10)], ids=["zero", "shrinking", "nan"])
def test_impossible_chunk_sizes_are_named(sizes):
    with pytest.raises(ValueError, match="need 1 <= first_chunk <= chunk"):
        planner(*sizes)


def test_the_published_shape_hears_21_frames_and_makes_320_samples_of_one():
    assert streaming.context_frames(FULL_CONFIG) == 21
    assert streaming.samples_per_frame(FULL_CONFIG) == 320


def test_a_shape_without_overlap_hears_only_its_first_and_last_convolutions():
    """One stage of three samples, width-3 blocks: 3 frames by conv_pre, 2 by what conv_post and the block reach."""
    assert streaming.context_frames(CONFIGS["one-stage"]) == 5


def test_a_unit_lasts_what_the_vocoders_config_says():
    """The packaged mini's 58 ms; 30 ms where it does not say, as the published one does not."""
    mini = json.loads((SHIPPED / "vocoder" / "config.json").read_text())
    assert streaming.seconds_per_unit(mini) == pytest.approx(0.058)
    published = {key: value for key, value in FULL_CONFIG.items() if key != "frames_per_unit"}
    assert streaming.seconds_per_unit(published) == pytest.approx(streaming.SECONDS_PER_UNIT)
