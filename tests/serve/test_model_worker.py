"""The model worker on the tiny checkpoint, in this process and without Ray: what it sends, and what it gives back."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from omni import checkpoints
from omni.audio import wav
from omni.model import checkpoint
from omni.model.prompt import Utterance
from omni.model.sampling import Sampling as ModelSampling
from omni.serve import errors, thinking
from omni.serve.config import ServeConfig
from omni.serve.model_worker import ModelWorker
from omni.serve.protocol import Message, ReadRequest, Sampling, Tokens, TurnRequest

SPEECH = wav.read(Path(__file__).parents[1] / "golden" / "audio" / "utt0.wav")
QUESTION = (Message("user", pcm16=wav.to_pcm16(SPEECH)),)
TOKENS = 12


@pytest.fixture(scope="module")
def config() -> ServeConfig:
    tiny = checkpoints.resolve("tiny")
    return ServeConfig(
        tiny.name, str(tiny.model), str(tiny.vocoder), slots=2, waiting=2, max_new_tokens=250, model_dtype="float32"
    )


@pytest.fixture(scope="module")
def worker(config: ServeConfig) -> Iterator[ModelWorker]:
    worker = ModelWorker(config, "w1")
    yield worker
    worker.stop()


def request(turn_id: str = "t", tokens: int = TOKENS, **more: object) -> TurnRequest:
    return TurnRequest(turn_id, 0, QUESTION, Sampling(max_new_tokens=tokens), **more)  # type: ignore[arg-type]


async def whole(stream: AsyncIterator[Tokens]) -> tuple[tuple[int, ...], str, tuple[int, ...], list[Tokens]]:
    messages = [message async for message in stream]
    assert [message.number for message in messages] == list(range(len(messages)))
    ids = tuple(token for message in messages for token in message.token_ids)
    units = tuple(unit for message in messages for unit in message.units)
    return ids, "".join(message.text for message in messages), units, messages


async def test_it_answers_as_the_reference_path_does(worker, config):
    ids, text, units, messages = await whole(worker.generate(request()))
    omni = checkpoint.load(config.model)
    heard = wav.from_pcm16(wav.to_pcm16(SPEECH))  # as it went over the wire
    steps = list(omni.answer([Utterance("user", speech=heard)], ModelSampling(max_new_tokens=TOKENS)))
    assert ids == tuple(step.token_id for step in steps)
    assert text == "".join(step.text for step in steps)
    assert units == tuple(unit for step in steps for unit in step.units)
    assert messages[-1].finish == "length"


def test_a_listeners_clock_goes_by_the_checkpoints_vocoder(config, tmp_path):
    """The mini's units last twice as long as published ones: its listeners were taken to be about to hear nothing."""
    assert thinking.load(config).scheduler.config.seconds_per_unit == 0.03
    voice = json.loads((Path(config.vocoder) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**voice, "frames_per_unit": 4.0}))
    slow = thinking.load(replace(config, vocoder=str(tmp_path)))
    assert slow.scheduler.config.seconds_per_unit == pytest.approx(0.08)


async def test_the_first_message_says_who_answers(worker):
    async with aclosing(worker.generate(request())) as stream:
        first = await anext(stream)
    assert (first.worker, first.token_ids, first.epoch, first.number) == ("w1", (), 0, 0)


async def test_it_counts_what_it_held_already(config):
    """Of a second prompt it reads only what is new: all of the first one and its answer is held."""
    worker = ModelWorker(config, "w1")
    try:
        ids, text, _, first = await whole(worker.generate(request("first")))
        asked = first[-1].num_prompt_tokens
        answered = Message("assistant", text=text, token_ids=ids)
        messages = (*QUESTION, answered, Message("user", text="And then?"))
        *_, second = await whole(worker.generate(replace(request("second"), messages=messages)))
    finally:
        worker.stop()
    assert (first[-1].num_cached_tokens, first[0].num_cached_tokens) == (0, 0)
    assert asked + TOKENS - 1 <= second[-1].num_cached_tokens < second[-1].num_prompt_tokens


async def test_what_it_read_ahead_it_holds(config):
    """It says who has read, as the turn shall come here too; and of that turn only the question is read."""
    worker = ModelWorker(config, "w1")
    history = (Message("system", text="Be brief, and kind. " * 5), *QUESTION, Message("assistant", text="Yes."))
    try:
        assert await worker.read(ReadRequest("ahead", history)) == "w1"
        assert worker.load()["running"] == worker.load()["waiting"] == worker.load()["answered"] == 0
        assert worker.load()["read"] == 1
        asked = replace(request(), messages=(*history, Message("user", text="And then?")))
        *_, messages = await whole(worker.generate(asked))
    finally:
        worker.stop()
    new = len("<|im_end|>\n<|im_start|>assistant\n And then?")
    assert 0 < messages[-1].num_prompt_tokens - messages[-1].num_cached_tokens <= new


async def test_a_reading_is_refused_where_the_slots_are_taken_and_ended_where_nobody_waits(worker):
    """It keeps no place from those who ask, and leaves none behind."""
    with pytest.raises(errors.BadRequest):
        await worker.read(ReadRequest("wrong", (Message("user", pcm16=wav.to_pcm16(SPEECH[:1].repeat(31 * 16_000))),)))
    reading = asyncio.create_task(worker.read(ReadRequest("left", QUESTION * 3)))
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    streams = [worker.generate(request(f"r{i}", tokens=200)) for i in range(2)]
    for stream in streams:
        await anext(stream)
    with pytest.raises(errors.Busy):
        await worker.read(ReadRequest("full", QUESTION))
    for stream in streams:
        await stream.aclose()
    assert not worker._mailboxes


def test_what_is_computed_when_the_loop_has_closed_goes_to_nobody(worker):
    """Whoever waited went with the loop; the computing thread goes on for those who ask from another one."""
    worker._loop = asyncio.new_event_loop()
    worker._loop.close()
    worker._deliver([])
    worker.check_health()
    assert not worker._mailboxes


async def test_it_says_where_each_token_ends(worker):
    """In units and characters of the whole answer, also where an answer goes on that another worker began."""
    ids, text, units, messages = await whole(worker.generate(request()))
    ends = [end for message in messages for end in message.ends]
    assert len(ends) == len(ids) and ends[-1] == (len(units), len(text))
    for k in (1, TOKENS // 2):
        rest = replace(request("rest", forced_tokens=ids[:k], received_units=ends[k - 1][0]), epoch=1)
        *_, messages = await whole(worker.generate(rest))
        assert [end for message in messages for end in message.ends] == ends[k:]


@pytest.mark.parametrize("k", [1, TOKENS // 2, TOKENS - 1])
async def test_forced_tokens_are_neither_chosen_nor_sent_again(worker, k):
    """What another worker has given before, and this one's rest, are the whole."""
    ids, text, units, messages = await whole(worker.generate(request()))
    before = [message for message in messages if message.number <= k]
    forced = tuple(token for message in before for token in message.token_ids)
    received = sum(len(message.units) for message in before)
    again = replace(request("t2", forced_tokens=forced, received_units=received), epoch=1)
    rest_ids, rest_text, rest_units, rest = await whole(worker.generate(again))
    assert forced + rest_ids == ids
    assert "".join(message.text for message in before) + rest_text == text
    assert units[:received] + rest_units == units
    assert {message.epoch for message in rest} == {1}


async def test_leaving_frees_the_slot(worker):
    """The worker computes nothing more for a turn that was cancelled, and has room for the next."""
    async with aclosing(worker.generate(request(tokens=250))) as stream:
        async for message in stream:
            if message.token_ids:
                break
    async with asyncio.timeout(10):
        while worker.load()["running"] or worker.load()["waiting"]:  # noqa: ASYNC110 (the thread sets no event)
            await asyncio.sleep(0.01)


async def test_full_worker_says_busy_and_when_to_come_back(worker, config):
    """Two slots and two places in the queue: the fifth is told at once, and the others lose nothing by it."""
    streams = [worker.generate(request(f"t{i}")) for i in range(4)]
    for stream in streams:
        await anext(stream)
    with pytest.raises(errors.Busy) as busy:
        await anext(worker.generate(request("t4")))
    assert busy.value.retry_after
    answers = await asyncio.gather(*(_rest(stream) for stream in streams))
    assert answers == [(await whole(worker.generate(request("alone"))))[1]] * 4


async def test_queued_turn_hears_heartbeats(worker, config):
    """A turn without a slot is told so while it waits."""
    running = [worker.generate(request(f"r{i}", tokens=200)) for i in range(2)]
    for stream in running:
        async for message in stream:
            if message.token_ids:
                break
    async with aclosing(worker.generate(request("queued"))) as queued:
        first = await anext(queued)
    for stream in running:
        await stream.aclose()
    assert first.waiting


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"sampling": Sampling(max_new_tokens=10_000)}, "answer_too_long"),
        ({"sampling": Sampling(temperature=float("nan"))}, "bad_sampling"),
        ({"messages": (Message("assistant", text="Hello"),)}, "bad_prompt"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_what_is_wrong_with_a_request_is_told(worker, change, code):
    with pytest.raises(errors.BadRequest) as told:
        await whole(worker.generate(replace(request(), **change)))
    assert told.value.code == code
    assert worker.load()["running"] == 0


async def _rest(stream: AsyncIterator[Tokens]) -> str:
    return "".join([message.text async for message in stream])
