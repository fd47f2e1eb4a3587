"""What a live conversation answers to what: push-to-talk, items, settings, formats, bad input. Over a real socket."""

import asyncio
import base64
import struct

import numpy as np
import pytest
from fake_cluster import (
    CACHED_TOKENS,
    PROMPT_TOKENS,
    UNITS_PER_TOKEN,
    WORDS,
    config,
    over_tcp,
    tone,
    whole_answer,
)
from realtime_client import talk
from talking import PUSH_TO_TALK, ask, ended, samples, silence, written

from omni.audio import wav
from omni.audio.resample import Resampler
from omni.serve import errors
from omni.serve.controller import make_app

TOKEN_MS = UNITS_PER_TOKEN * 20  # of sound, in the fake voice

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


async def test_it_is_told_which_words_sound_until_when(url):
    """After each piece of sound, for the tokens in it: what the session itself will remember as heard."""
    async with talk(url) as client:
        await client.update(**PUSH_TO_TALK)
        await ask(client)
    ends = [tuple(end) for each in client.of("omni.alignment.delta") for end in each["ends"]]
    words = WORDS[:-1]  # the last token only ends the answer
    assert ends == [(len("".join(words[: i + 1])), (i + 1) * TOKEN_MS) for i in range(len(words))]
    kinds = [kind for kind in client.kinds() if kind in ("response.output_audio.delta", "omni.alignment.delta")]
    assert kinds[0] == "response.output_audio.delta" and "omni.alignment.delta" in kinds[:-1]


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
