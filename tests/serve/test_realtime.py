"""WS /v1/realtime over a real socket: push-to-talk, turn detection, interruption, bad input, limits."""

import asyncio
import base64
import json
import random
import re
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import websockets
from fake_cluster import (
    CACHED_TOKENS,
    PROMPT_TOKENS,
    UNITS_PER_TOKEN,
    WORDS,
    FakeCluster,
    config,
    over_tcp,
    tone,
    until,
    whole_answer,
)
from realtime_client import RealtimeClient, talk

from omni.audio import wav
from omni.audio.resample import Resampler
from omni.serve import errors
from omni.serve.controller import make_app
from omni.serve.protocol import Tokens, TurnRequest
from omni.serve.realtime_events import CLIENT_EVENTS, SERVER_EVENTS
from omni.serve.realtime_settings import IGNORED, NEUTRAL, Settings

HELDOUT = Path(__file__).parents[2] / "omni" / "train" / "data" / "heldout"
PUSH_TO_TALK = {"audio": {"input": {"turn_detection": None, "format": {"rate": 16000}}}}
DETECTED = {"audio": {"input": {"format": {"rate": 16000}}}}


def silence(seconds: float) -> bytes:
    return bytes(2 * int(16_000 * seconds))


def speech(name: str = "chitchat-000") -> bytes:
    """A recorded question, int16 at 16 kHz."""
    return wav.to_pcm16(wav.read(HELDOUT / f"{name}.flac"))


def spoken() -> bytes:
    """Speech without a pause at either end."""
    samples = wav.from_pcm16(speech())
    loud = np.flatnonzero(np.abs(samples) > 0.05)
    return wav.to_pcm16(samples[loud[0] : loud[-1]])


def written(text: str, role: str = "user") -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


def samples(pcm16: bytes) -> np.ndarray:
    return np.frombuffer(pcm16, dtype="<i2").astype(int)


async def ask(client: RealtimeClient) -> dict[str, Any]:
    """A whole turn by push-to-talk. Returns its response.done."""
    await client.append(wav.to_pcm16(tone()))
    await client.send("input_audio_buffer.commit")
    await client.send("response.create")
    return await client.until("response.done")


def ended(app) -> dict[str, int]:
    """Turns by outcome; and every turn that started is live or among them."""
    metrics = app.state.registry.metrics
    outcomes = {
        name: int(metrics.ended.labels(name)._value.get()) for name in ("ok", "cancelled", "rejected", "failed")
    }
    assert metrics.started._value.get() == sum(outcomes.values()) + len(app.state.registry.live)
    return outcomes


class ManyVoices(FakeCluster):
    """Every answer has a voice of its own: one value for all its samples. Answers are long, and come token by token."""

    def __init__(self, num_tokens: int = 60) -> None:
        super().__init__()
        self.num_tokens = num_tokens

    async def generate(self, request: TurnRequest) -> AsyncIterator[Tokens]:
        self.requests.append(request)
        unit = len(self.requests)
        try:
            for i in range(self.num_tokens):
                await asyncio.sleep(0)
                finish = "stop" if i + 1 == self.num_tokens else None
                units = (unit,) * UNITS_PER_TOKEN
                yield Tokens(request.epoch, i, (i,), " word", units, finish, num_prompt_tokens=PROMPT_TOKENS)
        finally:
            self.closed.append(request.turn_id)


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def app(tmp_path, cluster):
    return make_app(config(tmp_path), cluster)


@pytest.fixture
async def url(app):
    async with over_tcp(app) as url:
        yield url


# --- push-to-talk -----------------------------------------------------------------------------------------------------


async def test_a_committed_question_is_answered(url, cluster):
    """append, commit, response.create: the events of one answer, in the protocol's order, and its very samples."""
    async with talk(url) as client:
        await client.update(**PUSH_TO_TALK)
        question = wav.to_pcm16(tone())
        since = len(client.heard)
        await client.append(question)
        await client.send("input_audio_buffer.commit")
        await client.send("response.create")
        done = await client.until("response.done")
    kinds = [kind for kind in client.kinds(since) if not kind.endswith("delta")]
    assert kinds == [
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "response.created",
        "rate_limits.updated",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]
    text, pcm = whole_answer()
    assert client.sound() == pcm
    assert "".join(each["delta"] for each in client.of("response.output_audio_transcript.delta")) == text
    assert done["response"]["status"] == "completed"
    assert done["response"]["output"][0]["content"] == [{"type": "output_audio", "transcript": text}]
    (request,) = cluster.requests
    assert request.messages[-1].pcm16 == question


# --- turn detection ---------------------------------------------------------------------------------------------------


async def test_speech_is_answered_once_it_is_followed_by_silence(url, cluster):
    """With turn detection a client only sends what its microphone hears."""
    async with talk(url) as client:
        await client.update(**DETECTED)
        since = len(client.heard)
        await client.append(silence(0.5) + speech() + silence(1.0), portion=640)
        done = await client.until("response.done")
    assert client.kinds(since)[:4] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
    ]
    assert done["response"]["omni"]["timing"]["speculative"]
    assert client.sound() == whole_answer()[1]
    assert len(cluster.requests) == len(cluster.closed) == 1


async def test_silence_and_hiss_start_nothing(url, cluster):
    async with talk(url) as client:
        await client.update(**DETECTED)
        hiss = wav.to_pcm16(np.random.default_rng(0).normal(0, 0.01, 16_000).astype(np.float32))
        await client.append(silence(1.0) + hiss + silence(1.0))
        await client.update()
        assert client.of("input_audio_buffer.speech_started") == []
    assert cluster.requests == []


async def test_the_answer_is_ready_before_the_silence_is_over(url, app, cluster):
    """It begins in the pause and is made to its end; nothing of it is said before the question has ended."""
    async with talk(url) as client:
        await client.update(**DETECTED)
        await client.append(spoken() + silence(0.35), portion=640)
        await until(lambda: cluster.closed)
        assert len(app.state.registry.live) == 1
        await client.update()
        assert client.kinds()[2:] == ["input_audio_buffer.speech_started", "session.updated"]
        # the update changed what the answer depends on: it is begun anew, and dropped for it
        await client.append(silence(0.5), portion=640)
        done = await client.until("response.done")
    assert not done["response"]["omni"]["timing"]["speculative"]
    assert len(cluster.requests) == len(cluster.closed) == 2
    assert cluster.requests[0].messages == cluster.requests[1].messages


async def test_what_was_held_back_leaves_at_once(url, cluster):
    """One answer is made; when the silence is over, it is there already."""
    async with talk(url) as client:
        await client.update(**DETECTED)
        await client.append(spoken() + silence(0.35), portion=640)
        await until(lambda: cluster.closed)
        made = cluster.tokens_sent, cluster.vocoded
        assert client.of("response.created") == []
        await client.append(silence(0.5), portion=640)
        done = await client.until("response.done")
    assert client.sound() == whole_answer()[1]
    assert made[0] == len(WORDS) - 1 and made[1] > 0  # the last token's sender is still in its `yield`
    timing = done["response"]["omni"]["timing"]
    assert timing["speculative"] and timing["first_text_ms"] == 0
    assert len(cluster.requests) == 1


async def test_a_speaker_who_goes_on_drops_the_answer_and_frees_its_slot(url, app, cluster):
    """Three pauses, three answers begun, two dropped at once; the last one answers all that was said."""
    registry = app.state.registry
    cluster.gate = asyncio.Event()  # they wait in the middle of their first words
    async with talk(url) as client:
        await client.update(**DETECTED)
        for i in range(1, 4):
            await client.append(spoken() + silence(0.35), portion=640)
            await until(lambda i=i: len(cluster.requests) == i)
            await until(lambda i=i: len(cluster.closed) == i - 1 and len(registry.live) == 1)
        cluster.gate.set()
        await client.append(silence(0.5), portion=640)
        done = await client.until("response.done")
    assert len(client.of("input_audio_buffer.speech_started")) == len(client.of("response.created")) == 1
    assert done["response"]["status"] == "completed" and client.sound() == whole_answer()[1]
    lengths = [len(each.messages[-1].pcm16) for each in cluster.requests]
    assert lengths[0] < lengths[1] < lengths[2] and lengths[2] > 6 * len(spoken()) // 2
    await until(lambda: not registry.live)
    assert len(cluster.closed) == 3
    assert ended(app) == {"ok": 1, "cancelled": 2, "rejected": 0, "failed": 0}


async def test_a_pause_asks_what_the_end_asks(url, cluster):
    """Begun early or late, the question is the same samples: those of the item that is committed."""
    asked = []
    for pause in (130, 5_000):
        cluster.requests.clear()
        async with talk(url) as client:
            client_settings = {"silence_duration_ms": 500, "prefix_padding_ms": 200}
            await client.update(audio={"input": {"format": {"rate": 16000}, "turn_detection": client_settings}})
            await client.append(silence(0.5) + speech() + silence(1.0), portion=640 if pause == 130 else 2**20)
            await client.until("response.done")
            item_id = client.of("input_audio_buffer.committed")[0]["item_id"]
            await client.send("conversation.item.retrieve", item_id=item_id)
            item = (await client.until("conversation.item.retrieved"))["item"]
        asked.append(cluster.requests[-1].messages[-1].pcm16)
        assert base64.b64decode(item["content"][0]["audio"]) == asked[-1]
    assert asked[0] == asked[1]


async def test_a_busy_cluster_in_the_pause_is_asked_again_at_the_end(url, app, cluster):
    """An answer that failed while it was only a guess is nobody's error."""
    cluster.error = errors.Busy("Every slot is taken.")
    async with talk(url) as client:
        await client.update(**DETECTED)
        await client.append(spoken() + silence(0.35), portion=640)
        await until(lambda: ended(app)["rejected"] == 1)
        cluster.error = None
        await client.append(silence(0.5), portion=640)
        done = await client.until("response.done")
    assert done["response"]["status"] == "completed" and len(cluster.requests) == 2


async def test_no_answer_where_none_is_wanted(url, cluster):
    """create_response false: questions are taken, response.create answers them."""
    async with talk(url) as client:
        await client.update(audio={"input": {"format": {"rate": 16000}, "turn_detection": {"create_response": False}}})
        await client.append(speech() + silence(1.0), portion=640)
        await client.until("conversation.item.done")
        await client.update()
        assert cluster.requests == []
        await client.send("response.create")
        await client.until("response.done")
    assert len(cluster.requests) == 1


async def test_committing_by_hand_ends_the_speech(url, cluster):
    """In the middle of speech, commit is its end; when nobody speaks there is nothing to commit."""
    async with talk(url) as client:
        await client.update(**DETECTED)
        await client.append(spoken(), portion=640)
        await client.until("input_audio_buffer.speech_started")
        await client.send("input_audio_buffer.commit")
        await client.until("input_audio_buffer.committed")
        await client.send("input_audio_buffer.commit")
        error = await client.until("error")
        assert error["error"]["code"] == "input_audio_buffer_commit_empty"
        assert cluster.requests == [] and client.of("input_audio_buffer.speech_stopped") == []


async def test_a_question_that_does_not_end_is_answered_at_the_limit(tmp_path, cluster):
    """And the speaker is told: nothing is cut silently."""
    app = make_app(config(tmp_path, max_audio_seconds=2.0), cluster)
    async with over_tcp(app) as url, talk(url) as client:
        await client.update(**DETECTED)
        await client.append(spoken() * 4, portion=640)
        error = await client.until("error")
        assert error["error"]["code"] == "audio_too_long" and "2 s" in error["error"]["message"]
        await client.until("response.done")
    assert 2.0 <= len(cluster.requests[0].messages[-1].pcm16) / 32_000 < 2.1


# --- interruption -----------------------------------------------------------------------------------------------------


async def test_speech_over_the_answer_ends_it(url, app, cluster):
    """Nothing of it follows; the turn is cancelled; what was not said is not remembered."""
    cluster.gate, cluster.gate_at = asyncio.Event(), 8  # three words are never thought of
    async with talk(url) as client:
        await client.update(**DETECTED)
        await client.append(speech() + silence(1.0), portion=640)
        await client.until("response.output_audio.delta")
        await client.append(spoken(), portion=640)
        done = await client.until("response.done")
        kinds = client.kinds()
        assert kinds.index("response.done") > len(kinds) - 1 - kinds[::-1].index("input_audio_buffer.speech_started")
        assert done["response"]["status"] == "cancelled"
        assert done["response"]["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
        assert done["response"]["output"][0]["status"] == "incomplete"
        await until(lambda: not app.state.registry.live)
        cluster.gate.set()
        sent = len(client.sound())
        await client.append(silence(1.0), portion=640)
        await client.until("response.done")
    history = cluster.requests[-1].messages
    assert [each.role for each in history] == ["user", "assistant", "user"]
    heard = history[1].text
    assert whole_answer()[0].startswith(heard) and len(heard) < len(whole_answer()[0])
    assert sent < len(whole_answer()[1])
    assert ended(app)["cancelled"] >= 1


async def test_of_an_interrupted_answer_what_was_played_is_remembered(url, cluster):
    """The client reports its playback; more had been sent."""
    async with talk(url) as client:
        await client.update(**PUSH_TO_TALK)
        await client.append(wav.to_pcm16(tone()))
        await client.send("input_audio_buffer.commit")
        await client.send("response.create")
        done = await client.until("response.done")
        item_id = done["response"]["output"][0]["id"]
        await client.send("omni.playback", item_id=item_id, played_ms=400)
        await client.update(audio={"input": {"turn_detection": {"type": "server_vad"}}})
        await client.append(speech() + silence(1.0), portion=640)
        truncated = await client.until("conversation.item.truncated")
        assert (truncated["item_id"], truncated["audio_end_ms"]) == (item_id, 400)
        await client.until("response.done")
    # a token is 6 units, a unit 20 ms: three tokens sounded within 400 ms
    assert cluster.requests[-1].messages[1].text == "".join(WORDS[:3])


async def test_the_client_says_what_was_heard(url, cluster):
    """conversation.item.truncate, as OpenAI's clients send it; the last word counts."""
    async with talk(url) as client:
        await client.update(**PUSH_TO_TALK)
        done = await ask(client)
        item_id = done["response"]["output"][0]["id"]
        for audio_end_ms in (900, 250):
            await client.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=audio_end_ms)
            await client.until("conversation.item.truncated")
        await client.send("conversation.item.retrieve", item_id=item_id)
        item = (await client.until("conversation.item.retrieved"))["item"]
        assert item["content"][0]["transcript"] == "".join(WORDS[:2])
        await ask(client)
    assert cluster.requests[-1].messages[1].text == "".join(WORDS[:2])


async def test_an_answer_can_be_cancelled(url, app, cluster):
    """response.cancel: the response is over at once, and its worker is told."""
    cluster.gate, cluster.gate_at = asyncio.Event(), 4
    async with talk(url) as client:
        await client.update(**PUSH_TO_TALK)
        await client.append(wav.to_pcm16(tone()))
        await client.send("input_audio_buffer.commit")
        await client.send("response.create")
        await client.until("response.output_audio_transcript.delta")
        await client.send("response.cancel", event_id="wrong", response_id="resp_other")
        error = await client.until("error")
        assert error["error"]["code"] == "response_cancel_not_active" and error["error"]["event_id"] == "wrong"
        await client.send("response.cancel")
        done = await client.until("response.done")
        assert done["response"]["status_details"]["reason"] == "client_cancelled"
        await until(lambda: cluster.closed and not app.state.registry.live)
        await client.send("response.cancel")
        assert (await client.until("error"))["error"]["code"] == "response_cancel_not_active"
        await client.send("output_audio_buffer.clear")  # no error: nothing plays
        cluster.gate.set()
        assert (await ask(client))["response"]["status"] == "completed"


async def test_an_answer_that_is_not_to_be_interrupted_is_finished_first(url, cluster):
    """interrupt_response false: the question waits, and is answered after."""
    cluster.gate, cluster.gate_at = asyncio.Event(), 4
    async with talk(url) as client:
        detection = {"type": "server_vad", "interrupt_response": False}
        await client.update(audio={"input": {"format": {"rate": 16000}, "turn_detection": detection}})
        await client.append(speech() + silence(1.0), portion=640)
        await client.until("response.output_audio_transcript.delta")
        await client.append(speech() + silence(1.0), portion=640)
        await client.until("input_audio_buffer.committed")
        assert len(cluster.requests) == 1
        cluster.gate.set()
        first = await client.until("response.done")
        second = await client.until("response.done")
    assert [each["response"]["status"] for each in (first, second)] == ["completed"] * 2
    assert client.sound() == 2 * whole_answer()[1]
    assert [each.role for each in cluster.requests[-1].messages] == ["user", "assistant", "user"]


@pytest.mark.parametrize("binary", [False, True], ids=["base64", "frames"])
async def test_ten_random_interruptions(tmp_path, binary):
    """However often and whenever somebody speaks over an answer, no old sample follows a new one."""
    cluster = ManyVoices()
    app, rng = make_app(config(tmp_path), cluster), random.Random(7)
    async with over_tcp(app) as url, talk(url) as client:
        await client.update(**DETECTED, omni={"binary_audio": binary})
        await client.append(speech() + silence(1.0), portion=640)
        for _ in range(10):
            for _ in range(rng.randrange(1, 6)):
                await client.until("frame" if binary else "response.output_audio.delta")
            await client.append(spoken() + silence(1.0), portion=rng.choice([160, 640, 5_000]))
            await client.until("input_audio_buffer.committed")
        await client.until("frame" if binary else "response.output_audio.delta")
        await client.send("response.cancel")
        while (await client.until("response.done"))["response"]["omni"]["number"] < 11:
            pass
    voices = []
    for event in client.heard:
        if event["type"] == "frame":
            voices.append(set(samples(event["data"][12:])))
        elif event["type"] == "response.output_audio.delta":
            voices.append(set(samples(base64.b64decode(event["delta"]))))
    assert all(len(voice) == 1 for voice in voices), "one voice an answer"
    order = [voice.pop() for voice in voices]
    assert order == sorted(order) and len(set(order)) == 11
    await until(lambda: not app.state.registry.live)
    assert sorted(cluster.closed) == sorted(each.turn_id for each in cluster.requests)


async def test_nothing_of_a_response_follows_its_end(tmp_path):
    """Whatever was on its way: the last event of every response is its response.done."""
    cluster = ManyVoices()
    app = make_app(config(tmp_path), cluster)
    async with over_tcp(app) as url, talk(url) as client:
        await client.update(**PUSH_TO_TALK)
        await client.append(wav.to_pcm16(tone()))
        await client.send("input_audio_buffer.commit")
        for _ in range(5):
            await client.send("response.create")
            await client.until("response.output_audio.delta")
            await client.send("response.cancel")
            await client.until("response.done")
            await client.send("conversation.item.create", item=written("Go on."))
            await client.until("conversation.item.done")
    ended_ids = set()
    for event in client.heard:
        assert event.get("response_id") not in ended_ids or event["type"] == "error", event
        if event["type"] == "response.done":
            ended_ids.add(event["response"]["id"])
    assert len(ended_ids) == 5


# --- items, settings, formats -----------------------------------------------------------------------------------------


async def test_written_items_are_answered(url, cluster):
    """system, user and assistant; instructions come before them; where they stand is told."""
    async with talk(url) as client:
        await client.update(instructions="Be brief.", audio={"output": {"format": {"rate": 16000}}})
        for item in (written("Hi."), written("Hello.", role="assistant"), written("Bye.")):
            await client.send("conversation.item.create", item=item)
            await client.until("conversation.item.done")
        added = client.of("conversation.item.added")
        assert [each["previous_item_id"] for each in added] == [None, added[0]["item"]["id"], added[1]["item"]["id"]]
        await client.send("conversation.item.create", item=written("First."), previous_item_id="root")
        await client.until("conversation.item.done")
        await client.send("conversation.item.delete", item_id=added[0]["item"]["id"])
        await client.until("conversation.item.deleted")
        await client.send("response.create")
        await client.until("response.done")
    said = [(each.role, each.text) for each in cluster.requests[0].messages]
    assert said == [("system", "Be brief."), ("user", "First."), ("assistant", "Hello."), ("user", "Bye.")]


async def test_a_spoken_item_can_be_given(url, cluster):
    """Audio in an item has the input's rate, and comes back with it."""
    async with talk(url) as client:
        await client.update(**PUSH_TO_TALK)
        audio = base64.b64encode(wav.to_pcm16(tone())).decode()
        content = [{"type": "input_audio", "audio": audio}]
        await client.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        item = (await client.until("conversation.item.done"))["item"]
        assert "audio" not in item["content"][0]
        await client.send("conversation.item.retrieve", item_id=item["id"])
        assert (await client.until("conversation.item.retrieved"))["item"]["content"][0]["audio"] == audio


async def test_a_written_answer(url, cluster):
    async with talk(url) as client:
        await client.update(output_modalities=["text"])
        await client.send("conversation.item.create", item=written("Hi."))
        await client.send("response.create")
        done = await client.until("response.done")
    assert "".join(each["delta"] for each in client.of("response.output_text.delta")) == whole_answer()[0]
    assert client.of("response.output_text.done")[0]["text"] == whole_answer()[0]
    assert done["response"]["output"][0]["content"] == [{"type": "output_text", "text": whole_answer()[0]}]
    assert cluster.vocoded == 0 and client.of("response.output_audio.delta") == []


async def test_an_answer_cut_by_its_length_is_incomplete(url, cluster):
    async with talk(url) as client:
        await client.send("conversation.item.create", item=written("Hi."))
        await client.send("response.create", response={"max_output_tokens": 3, "metadata": {"topic": "greeting"}})
        response = (await client.until("response.done"))["response"]
    assert response["status_details"] == {"type": "incomplete", "reason": "max_output_tokens"}
    usage = {"input_tokens": PROMPT_TOKENS, "output_tokens": 3, "total_tokens": PROMPT_TOKENS + 3}
    assert response["usage"] == usage | {"input_token_details": {"cached_tokens": CACHED_TOKENS}}
    assert response["metadata"] == {"topic": "greeting"}


async def test_24_khz_in_and_out(url, cluster):
    """The default, as OpenAI's clients expect it: resampled on both ways, as in one piece."""
    async with talk(url) as client:
        await client.update(audio={"input": {"turn_detection": None}})
        question = wav.to_pcm16(tone(0.5, 24_000))
        await client.append(question, portion=962)
        await client.send("input_audio_buffer.commit")
        await client.send("response.create")
        await client.until("response.done")
    asked = cluster.requests[0].messages[-1].pcm16
    assert len(asked) == 16_000 and np.abs(samples(asked) - samples(wav.to_pcm16(tone(0.5)))).max() < 400
    whole = samples(Resampler(16_000, 24_000)(whole_answer()[1], last=True))
    assert np.abs(samples(client.sound()) - whole).max() <= 1


async def test_binary_frames_both_ways(url, cluster):
    """Bare PCM in; out with the response's number, the sample's position and the frame's number."""
    async with talk(url) as client:
        await client.update(**PUSH_TO_TALK, omni={"binary_audio": True})
        question = wav.to_pcm16(tone())
        for start in range(0, len(question), 640):
            await client.connection.send(question[start : start + 640])
        await client.send("input_audio_buffer.commit")
        await client.send("response.create")
        done = await client.until("response.done")
    assert cluster.requests[0].messages[-1].pcm16 == question
    position, pcm = 0, b""
    frames = [each["data"] for each in client.heard if each["type"] == "frame"]
    for i, frame in enumerate(frames):
        assert struct.unpack(">III", frame[:12]) == (done["response"]["omni"]["number"], position, i)
        pcm, position = pcm + frame[12:], position + len(frame[12:]) // 2
    assert pcm == whole_answer()[1] and client.of("response.output_audio.delta") == []


async def test_chunks_can_be_chosen(url, cluster):
    """Ω of the session: the whole answer in one piece, or many small ones."""
    counts = []
    for units in (1000, 2):
        cluster.vocoded = 0
        async with talk(url) as client:
            await client.update(**PUSH_TO_TALK, omni={"first_chunk": units, "chunk": units})
            await ask(client)
            assert client.sound() == whole_answer()[1]
        counts.append(cluster.vocoded)
    assert counts[0] == 1 < counts[1]


async def test_a_transcription_is_not_available_and_says_so(url):
    """It is shown as absent, and every question's is told to have failed: a client that waits for it goes on."""
    async with talk(url) as client:
        session = await client.update(
            audio={"input": {"turn_detection": None, "transcription": {"model": "gpt-4o-mini-transcribe"}}}
        )
        assert session["audio"]["input"]["transcription"] is None
        await client.append(wav.to_pcm16(tone(0.5, 24_000)))
        await client.send("input_audio_buffer.commit")
        event = await client.until("conversation.item.input_audio_transcription.failed")
    assert event["error"]["code"] == "transcription_unavailable"
    assert event["item_id"] == client.of("input_audio_buffer.committed")[0]["item_id"]


# --- bad input --------------------------------------------------------------------------------------------------------

ODD = base64.b64encode(b"abc").decode()
WRONG = {
    "not-json": ("{", "invalid_json", None),
    "deep": ("[" * 100_000, "invalid_json", None),
    "a-list": ("[]", "invalid_json", None),
    "no-type": ("{}", "missing_required_parameter", "type"),
    "unknown-event": ('{"type": "session.destroy"}', "unknown_event_type", "type"),
    "unknown-field": ('{"type": "response.cancel", "now": 1}', "unknown_parameter", "now"),
    "no-audio": ('{"type": "input_audio_buffer.append"}', "missing_required_parameter", "audio"),
    "not-base64": ('{"type": "input_audio_buffer.append", "audio": "%%%"}', "invalid_base64", "audio"),
    "half-a-sample": (f'{{"type": "input_audio_buffer.append", "audio": "{ODD}"}}', "invalid_value", None),
    "half-a-sample-in-binary": (b"abc", "invalid_value", None),
    "nothing-to-commit": ('{"type": "input_audio_buffer.commit"}', "input_audio_buffer_commit_empty", None),
    "nothing-to-answer": ('{"type": "response.create"}', "nothing_to_answer", None),
    "nothing-to-cancel": ('{"type": "response.cancel"}', "response_cancel_not_active", None),
    "no-such-item": ('{"type": "conversation.item.delete", "item_id": "item_x"}', "item_not_found", None),
    "no-such-item-played": ('{"type": "omni.playback", "item_id": "item_x", "played_ms": 1}', "item_not_found", None),
    "no-content": (
        '{"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": []}}',
        "invalid_value",
        "item.content",
    ),
    "a-call": (
        '{"type": "conversation.item.create", "item": {"type": "function_call_output"}}',
        "invalid_value",
        "item.type",
    ),
    "rate": (
        '{"type": "session.update", "session": {"audio": {"input": {"format": {"rate": 8000}}}}}',
        "invalid_value",
        "session.audio.input.format.rate",
    ),
    "tools": (
        '{"type": "session.update", "session": {"tools": [{"type": "function", "name": "f"}]}}',
        "unsupported_parameter",
        "session.tools",
    ),
    "unknown-setting": (
        '{"type": "session.update", "session": {"mood": "merry"}}',
        "unknown_parameter",
        "session.mood",
    ),
    "another-model": ('{"type": "session.update", "session": {"model": "gpt"}}', "model_not_found", "session.model"),
    "nan": ('{"type": "session.update", "session": {"temperature": NaN}}', "invalid_value", "session.temperature"),
    "tokens": (
        '{"type": "session.update", "session": {"max_output_tokens": 100000}}',
        "invalid_value",
        "session.max_output_tokens",
    ),
    "chunks": (
        '{"type": "session.update", "session": {"omni": {"first_chunk": 9, "chunk": 3}}}',
        "invalid_value",
        "session.omni.first_chunk",
    ),
}


@pytest.mark.parametrize(("message", "code", "param"), WRONG.values(), ids=list(WRONG))
async def test_what_is_wrong_is_said_and_nothing_else_happens(url, app, cluster, message, code, param):
    """A typed error, and the session goes on as it was."""
    async with talk(url) as client:
        before = await client.update(**PUSH_TO_TALK)
        await client.connection.send(message)
        error = (await client.until("error"))["error"]
        assert (error["code"], error["param"]) == (code, param)
        assert error["type"] == "invalid_request_error" and error["message"]
        assert await client.update() == before
        assert (await ask(client))["response"]["status"] == "completed"
    assert len(cluster.requests) == 1


async def test_an_error_names_its_event(url):
    async with talk(url) as client:
        await client.send("session.destroy", event_id="evt_7")
        assert (await client.until("error"))["error"]["event_id"] == "evt_7"


async def test_one_answer_at_a_time(url, cluster):
    cluster.gate = asyncio.Event()
    async with talk(url) as client:
        await client.send("conversation.item.create", item=written("Hi."))
        await client.send("response.create")
        await client.until("response.created")
        await client.send("response.create")
        error = (await client.until("error"))["error"]
        assert error["code"] == "conversation_already_has_active_response"
        cluster.gate.set()
        await client.until("response.done")


@pytest.mark.parametrize("failure", ["busy", "lost"])
async def test_an_answer_that_fails_is_told_and_the_session_goes_on(url, app, cluster, failure):
    cluster.error = errors.Busy("Every slot is taken.") if failure == "busy" else errors.WorkerLost("It died.")
    async with talk(url) as client:
        await client.send("conversation.item.create", item=written("Hi."))
        await client.send("response.create")
        response = (await client.until("response.done"))["response"]
        assert response["status"] == "failed" and response["output"] == []
        assert response["status_details"]["error"]["code"] == {"busy": "busy", "lost": "worker_lost"}[failure]
        cluster.error = None
        await client.send("response.create")
        assert (await client.until("response.done"))["response"]["status"] == "completed"
    outcome = {"busy": "rejected", "lost": "failed"}[failure]
    assert ended(app)[outcome] == 1 and ended(app)["ok"] == 1


async def test_ten_thousand_tiny_appends(url, cluster):
    """Two samples each, in JSON and bare: they are one recording, and the loop goes on."""
    async with talk(url) as client:
        await client.update(**PUSH_TO_TALK)
        question = wav.to_pcm16(tone(1.25))
        for start in range(0, len(question), 8):
            await client.append(question[start : start + 4], 4)
            await client.connection.send(question[start + 4 : start + 8])
        await client.send("input_audio_buffer.commit")
        await client.send("response.create")
        await client.until("response.done", seconds=60)
    assert cluster.requests[0].messages[-1].pcm16 == question


async def test_audio_faster_than_it_is_spoken(tmp_path, cluster):
    """A burst is fine; beyond it a portion is refused by name, and what came before is kept."""
    app = make_app(config(tmp_path, audio_burst=1.0), cluster)
    async with over_tcp(app) as url, talk(url) as client:
        await client.update(**PUSH_TO_TALK)
        await client.append(wav.to_pcm16(tone(0.9)))
        await client.append(wav.to_pcm16(tone(1.0)))
        assert (await client.until("error"))["error"]["code"] == "rate_limit_exceeded"
        await client.send("input_audio_buffer.commit")
        await client.send("response.create")
        await client.until("response.done")
    assert cluster.requests[0].messages[-1].pcm16 == wav.to_pcm16(tone(0.9))


async def test_a_question_longer_than_the_limit_is_refused(tmp_path, cluster):
    app = make_app(config(tmp_path, max_audio_seconds=1.0), cluster)
    async with over_tcp(app) as url, talk(url) as client:
        await client.update(**PUSH_TO_TALK)
        await client.append(wav.to_pcm16(tone(0.9)), 2**20)
        await client.append(wav.to_pcm16(tone(0.2)), 2**20)
        assert (await client.until("error"))["error"]["code"] == "audio_too_long"
        await client.send("input_audio_buffer.clear")
        await client.until("input_audio_buffer.cleared")
        await client.append(wav.to_pcm16(tone(0.5)))
        await client.send("input_audio_buffer.commit")
        await client.until("input_audio_buffer.committed")


async def test_a_silent_question_names_the_microphone(url):
    async with talk(url) as client:
        await client.update(**PUSH_TO_TALK)
        await client.append(silence(1.0))
        await client.send("input_audio_buffer.commit")
        error = (await client.until("error"))["error"]
        assert error["code"] == "audio_silent" and "microphone" in error["message"]


# --- bounds -----------------------------------------------------------------------------------------------------------


async def test_an_answer_waits_for_its_listener(tmp_path):
    """A client that reports its playback gets no more than `audio_ahead` beyond it; and then the rest."""
    cluster = ManyVoices(num_tokens=200)  # 24 s
    app = make_app(config(tmp_path, audio_ahead=2.0, chunk=20), cluster)
    async with over_tcp(app) as url, talk(url) as client:
        await client.update(**PUSH_TO_TALK)
        await client.append(wav.to_pcm16(tone()))
        await client.send("input_audio_buffer.commit")
        await client.send("response.create")
        item_id, played, seconds = "", 0.0, 0.0
        while (event := await client.next())["type"] != "response.done":
            if event["type"] == "response.output_audio.delta":
                item_id = event["item_id"]
                seconds += len(base64.b64decode(event["delta"])) / 32_000
                assert seconds <= played + 2.0 + 20 * 0.02 * 2, "no further ahead than the bound and one piece"
                if seconds >= played + 1.0:
                    played = seconds
                    await client.send("omni.playback", item_id=item_id, played_ms=1000 * played)
        assert seconds == pytest.approx(24.0)


async def test_a_client_that_stops_reporting_is_given_up(tmp_path):
    """The answer fails by name, its slot is freed, and the session goes on."""
    cluster = ManyVoices(num_tokens=200)
    app = make_app(config(tmp_path, audio_ahead=1.0, client_deadline=0.3), cluster)
    async with over_tcp(app) as url, talk(url) as client:
        await client.update(**PUSH_TO_TALK)
        await client.append(wav.to_pcm16(tone()))
        await client.send("input_audio_buffer.commit")
        await client.send("response.create")
        event = await client.until("response.output_audio.delta")
        await client.send("omni.playback", item_id=event["item_id"], played_ms=1)
        response = (await client.until("response.done"))["response"]
        assert response["status_details"]["error"]["code"] == "client_too_slow"
        await until(lambda: not app.state.registry.live and cluster.closed)
        await client.update()


async def test_a_socket_that_never_reads(tmp_path):
    """What waits for it is bounded, and when it is cut off everything is given back."""
    cluster = ManyVoices(num_tokens=2_000)
    app = make_app(config(tmp_path, audio_ahead=3_600.0), cluster)
    registry = app.state.registry
    async with over_tcp(app) as url:
        address = url.replace("http", "ws") + "/v1/realtime"
        connection = await websockets.connect(address, compression=None, max_queue=1, ping_interval=None)
        audio = base64.b64encode(wav.to_pcm16(tone(0.5, 24_000))).decode()
        for event in (
            {"type": "session.update", "session": {"audio": {"input": {"turn_detection": None}}}},
            {"type": "input_audio_buffer.append", "audio": audio},
            {"type": "input_audio_buffer.commit"},
            {"type": "response.create"},
        ):
            await connection.send(json.dumps(event))
        before = -1
        while before != cluster.vocoded:  # until nothing moves any more
            before = cluster.vocoded
            await asyncio.sleep(0.5)
        assert 0 < cluster.vocoded < 150, "of 2,000 tokens' 12,000 units, in pieces of 80"
        assert len(registry.live) == 1
        connection.transport.abort()
        await until(lambda: not registry.live and not registry.sockets)
    assert ended(app)["cancelled"] == 1 and cluster.closed


async def test_eight_people_at_once(url, app, cluster):
    """Each hears the answer to their own question, whole; afterwards nothing is left of any."""

    async def converse(seconds: float) -> tuple[bytes, bytes]:
        async with talk(url) as client:
            await client.update(**DETECTED)
            await client.append(silence(seconds) + speech() + silence(1.0), portion=640)
            await client.until("response.done", seconds=60)
            item_id = client.of("input_audio_buffer.committed")[0]["item_id"]
            await client.send("conversation.item.retrieve", item_id=item_id)
            item = (await client.until("conversation.item.retrieved"))["item"]
            return client.sound(), base64.b64decode(item["content"][0]["audio"])

    heard = await asyncio.gather(*(converse(0.1 * i) for i in range(8)))
    assert [sound for sound, _ in heard] == [whole_answer()[1]] * 8
    assert {asked for _, asked in heard} == {each.messages[-1].pcm16 for each in cluster.requests}
    await until(lambda: not app.state.registry.live and not app.state.registry.sockets)
    assert ended(app)["ok"] == 8


# --- who may connect, and how it ends ---------------------------------------------------------------------------------


async def refused(url: str, path: str = "", **options) -> int:
    with pytest.raises(websockets.InvalidStatus) as caught:
        async with websockets.connect(url.replace("http", "ws") + "/v1/realtime" + path, **options):
            pass
    body = json.loads(caught.value.response.body)
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return caught.value.response.status_code


async def test_a_key_is_asked_for(tmp_path, cluster):
    """As a header, or as a browser sends it; a subprotocol with the key is not sent back."""
    app = make_app(config(tmp_path), cluster, api_key="secret")
    async with over_tcp(app) as url:
        assert await refused(url) == 401
        assert await refused(url, additional_headers={"authorization": "Bearer wrong"}) == 401
        assert await refused(url, subprotocols=["realtime", "openai-insecure-api-key.wrong"]) == 401
        async with talk(url, additional_headers={"authorization": "Bearer secret"}):
            pass
        async with talk(url, subprotocols=["realtime", "openai-insecure-api-key.secret"]) as client:
            assert client.connection.subprotocol == "realtime"


async def test_pages_of_other_origins_may_not_connect(tmp_path, cluster):
    app = make_app(config(tmp_path, allowed_origins="https://friend.example"), cluster)
    async with over_tcp(app) as url:
        for origin in ("https://evil.example", "null", "https://friend.example.evil.example", "http://[", "file://"):
            assert await refused(url, origin=origin) == 403
        for origin in ("http://127.0.0.1:7860", "http://localhost", "https://friend.example", "http://[::1]:80"):
            async with talk(url, origin=origin):
                pass


async def test_another_model_is_not_here(url):
    assert await refused(url, "?model=gpt-realtime") == 404
    async with websockets.connect(url.replace("http", "ws") + "/v1/realtime?model=fake") as connection:
        assert json.loads(await connection.recv())["session"]["model"] == "fake"


async def test_every_place_is_taken(tmp_path, cluster):
    """The error tells the cause, the close code 1013 to try again later; a place that is given back is free."""
    app = make_app(config(tmp_path, max_sockets=1), cluster)
    async with over_tcp(app) as url:
        async with talk(url):
            assert app.state.registry.metrics.sockets._value.get() == 1
            assert await told_at_once(url) == ("busy", 1013)
        await until(lambda: not app.state.registry.sockets)
        async with talk(url):
            pass


async def told_at_once(url: str) -> tuple[str, int]:
    """The error's code and the close code of a socket that is not wanted."""
    async with websockets.connect(url.replace("http", "ws") + "/v1/realtime") as connection:
        code = json.loads(await connection.recv())["error"]["code"]
        await connection.wait_closed()
        return code, connection.close_code


async def test_a_draining_controller_lets_an_answer_end(url, app, cluster):
    """Idle sockets close with 1012 at once, the talking one after its answer; new ones are sent elsewhere."""
    cluster.gate = asyncio.Event()
    async with talk(url) as idle, talk(url) as talking:
        await talking.send("conversation.item.create", item=written("Hi."))
        await talking.send("response.create")
        await talking.until("response.created")
        drain = asyncio.create_task(app.state.registry.drain(30))
        assert (await idle.until("error"))["error"]["code"] == "draining"
        await idle.connection.wait_closed()
        assert idle.connection.close_code == 1012
        assert await told_at_once(url) == ("draining", 1012)
        cluster.gate.set()
        assert (await talking.until("response.done"))["response"]["status"] == "completed"
        await talking.until("error")
        await talking.connection.wait_closed()
        assert talking.connection.close_code == 1012
        await drain
    assert not app.state.registry.sockets


async def test_a_drain_does_not_wait_for_ever(url, app, cluster):
    cluster.gate = asyncio.Event()
    async with talk(url) as client:
        await client.send("conversation.item.create", item=written("Hi."))
        await client.send("response.create")
        await client.until("response.created")
        await app.state.registry.drain(0.05)
        response = (await client.until("response.done"))["response"]
        assert response["status_details"]["error"]["code"] == "draining"
        await client.connection.wait_closed()
    await until(lambda: not app.state.registry.live and cluster.closed)


@pytest.mark.parametrize(
    ("setting", "close_code", "error"),
    [("idle_deadline", 1000, None), ("conversation_deadline", 1008, "session_expired")],
)
async def test_a_conversation_has_an_end(tmp_path, cluster, setting, close_code, error):
    app = make_app(config(tmp_path, **{setting: 0.2}), cluster)
    async with over_tcp(app) as url, talk(url) as client:
        with pytest.raises(websockets.ConnectionClosed):
            while True:
                await client.next()
        assert client.connection.close_code == close_code
        assert [each["error"]["code"] for each in client.of("error")] == ([error] if error else [])
    assert not app.state.registry.sockets


async def test_a_message_has_a_limit(tmp_path, cluster):
    app = make_app(config(tmp_path, max_message_bytes=1_000), cluster)
    async with over_tcp(app) as url, talk(url) as client:
        await client.connection.send("x" * 1_001)
        await client.connection.wait_closed()
        assert client.connection.close_code == 1009
        await until(lambda: not app.state.registry.sockets)


async def test_a_client_that_leaves_gives_everything_back(url, app, cluster):
    """In the middle of an answer, and in the middle of a guess."""
    registry = app.state.registry
    cluster.gate = asyncio.Event()
    for question in (spoken() + silence(0.35), speech() + silence(1.0)):
        async with talk(url) as client:
            await client.update(**DETECTED)
            await client.append(question, portion=640)
            await until(lambda: len(registry.live) == 1)
        await until(lambda: not registry.live and not registry.sockets)
    await until(lambda: len(cluster.closed) == 2)
    assert ended(app)["cancelled"] == 2


# --- the document -----------------------------------------------------------------------------------------------------


def table(heading: str) -> list[list[str]]:
    """The rows under a heading of docs/protocol.md."""
    text = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    section = re.search(rf"### {heading}\n(.*?)(\n### |\n## )", text, re.S)
    assert section, heading
    rows = [
        line.strip("|").split("|")
        for line in section[1].splitlines()
        if line.startswith("| `") or line.startswith("| …")
    ]
    return [[cell.strip() for cell in row] for row in rows]


def test_the_document_has_every_client_event_and_its_fields():
    rows = {row[0].strip("`"): row for row in table("Client events")}
    assert set(rows) == set(CLIENT_EVENTS)
    for kind, model in CLIENT_EVENTS.items():
        assert set(re.findall(r"`(\w+)`", rows[kind][1])) == set(model.model_fields) - {"type", "event_id"}, kind


def test_the_document_has_every_server_event():
    assert {row[0].strip("`") for row in table("Server events")} == SERVER_EVENTS


def test_the_document_has_every_setting_and_its_default(tmp_path):
    """Every setting of a session is in the table, and the default that is told there is the default."""
    settings = config(tmp_path)
    shown, names, parent = Settings().shown(settings), [], ""
    for row in table("The session"):
        inner = row[0].startswith("…")
        told = re.findall(r"`[^`]+`|[\d.]+|true|false|the server's|as the input's", row[1])
        here = re.findall(r"`\.?([\w.]+)`", row[0])
        parent = parent if inner else here[0]
        for i, name in enumerate(f"{parent}.{each}" if inner else each for each in here):
            names.append(name)
            value = shown
            for part in name.split("."):
                assert part in value, name
                value = value[part]
            default = told[i if len(told) == len(here) else 0].strip("`")
            if default == "server_vad":
                assert value["type"] == default
            elif default == "as the input's":
                assert value == shown["audio"]["input"]["format"]
            elif default != "the server's":
                assert value == json.loads(default), name
    everything = {"type", "model", "omni.model_rate", *NEUTRAL, *IGNORED} | {
        f"audio.input.{name}" for name in ("noise_reduction", "turn_detection.type", "turn_detection.idle_timeout_ms")
    }
    assert set(leaves(Settings().model_dump())) <= {*names, *everything, "audio.output.speed"}, "all of them"


def leaves(shown: dict, above: str = "") -> list[str]:
    found = []
    for name, value in shown.items():
        inner = isinstance(value, dict) and name != "format"
        found += leaves(value, f"{above}{name}.") if inner else [f"{above}{name}"]
    return found
