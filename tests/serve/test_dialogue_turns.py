"""Who speaks when in a live conversation: turn detection, answers begun in a pause, interruption."""

import asyncio
import base64
import random

import numpy as np
import pytest
from fake_cluster import (
    WORDS,
    config,
    over_tcp,
    tone,
    until,
    whole_answer,
)
from realtime_client import talk
from talking import DETECTED, PUSH_TO_TALK, ManyVoices, ask, ended, samples, silence, speech, spoken, written

from omni.audio import wav
from omni.serve import errors
from omni.serve.controller import make_app

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


async def test_what_was_said_before_is_read_while_somebody_speaks(url, cluster):
    """Once a question, from its first words on; the first one has nothing before it."""
    async with talk(url) as client:
        await client.update(**DETECTED)
        for turn in range(2):
            await client.append(spoken(), portion=640)
            await client.until("input_audio_buffer.speech_started")
            await until(lambda turn=turn: len(cluster.readings) == turn and len(cluster.requests) == turn)
            await client.append(silence(1.0), portion=640)
            await client.until("response.done")
    assert cluster.readings[0].messages == cluster.requests[1].messages[:-1]


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
