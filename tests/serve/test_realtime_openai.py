"""OpenAI's Python client, unmodified, over /v1/realtime: on a fake cluster event by event, and on a real one."""

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
import soxr
from fake_cluster import CACHED_TOKENS, WORDS, config, over_tcp, question, tone, whole_answer
from up import Up

from omni.audio import wav
from omni.serve.client import Client
from omni.serve.controller import make_app
from omni.serve.protocol import AudioDelta, TextDelta

HELDOUT = Path(__file__).parents[2] / "omni" / "train" / "data" / "heldout"
TOKENS = 24  # of an answer of the real cluster's
PORTION = 4_800  # bytes: 100 ms at the client's own rate


def spoken() -> bytes:
    """A recorded question and the silence after it, at the client's own rate."""
    samples = soxr.resample(wav.read(HELDOUT / "chitchat-000.flac"), 16_000, 24_000)
    return wav.to_pcm16(samples) + bytes(2 * 24_000)


def client_of(url: str) -> openai.AsyncOpenAI:
    address = url.replace("http", "ws")
    return openai.AsyncOpenAI(base_url=f"{url}/v1", websocket_base_url=f"{address}/v1", api_key="any", max_retries=0)


@pytest.fixture
async def official(url):
    async with client_of(url) as client:
        yield client


@dataclass
class Answer:
    """All that came until the end of one response."""

    text: str = ""
    pcm16: bytes = b""
    kinds: list[str] = field(default_factory=list)
    response: Any = None


async def hear(connection) -> Answer:
    answer = Answer()
    async for event in connection:
        assert event.type != "error", event
        answer.kinds.append(event.type)
        if event.type == "response.output_audio_transcript.delta":
            answer.text += event.delta
        elif event.type == "response.output_audio.delta":
            answer.pcm16 += base64.b64decode(event.delta)
        elif event.type == "response.done":
            answer.response = event.response
            return answer
    raise AssertionError("the connection ended")


async def say(connection, pcm16: bytes) -> None:
    for start in range(0, len(pcm16), PORTION):
        await connection.input_audio_buffer.append(audio=base64.b64encode(pcm16[start : start + PORTION]).decode())


# --- on a fake cluster ------------------------------------------------------------------------------------------------


async def test_push_to_talk(official):
    """Its typed events, its helpers, its default rate."""
    async with official.realtime.connect(model="fake") as connection:
        await connection.session.update(
            session={"type": "realtime", "output_modalities": ["audio"], "audio": {"input": {"turn_detection": None}}}
        )
        await say(connection, wav.to_pcm16(tone(0.5, 24_000)))
        await connection.input_audio_buffer.commit()
        await connection.response.create()
        answer = await hear(connection)
    assert answer.response.status == "completed"
    assert answer.response.output[0].content[0].transcript == answer.text == whole_answer()[0]
    assert answer.response.usage.output_tokens == len(WORDS)
    assert answer.response.usage.input_token_details.cached_tokens == CACHED_TOKENS
    assert len(answer.pcm16) == len(whole_answer()[1]) * 3 // 2


async def test_turn_detection(official, cluster):
    """server_vad as it comes; it speaks, is answered, truncates what it did not hear, and speaks again."""
    async with official.realtime.connect(model="fake") as connection:
        await say(connection, spoken())
        first = await hear(connection)
        item_id = first.response.output[0].id
        await connection.conversation.item.truncate(item_id=item_id, content_index=0, audio_end_ms=500)
        await say(connection, spoken())
        second = await hear(connection)
    for answer in (first, second):
        assert answer.kinds.count("input_audio_buffer.speech_started") == 1
        assert answer.kinds.count("input_audio_buffer.committed") == 1
    assert cluster.requests[-1].messages[1].text == "".join(WORDS[:4])


async def test_it_reconnects_when_told_to(tmp_path, cluster):
    """1012 and 1013 are codes that its own reconnection takes."""
    app = make_app(config(tmp_path), cluster)
    async with over_tcp(app) as url:
        client = client_of(url)
        codes = []

        def again(event):
            codes.append(event.close_code)
            app.state.registry.draining = False  # as if another controller took its place

        async with client.realtime.connect(
            model="fake", on_reconnecting=again, initial_delay=0.01, max_retries=2
        ) as connection:
            created = 0
            async for event in connection:
                created += event.type == "session.created"
                if created == 2:
                    break
                if event.type == "session.created":
                    await app.state.registry.drain(5)
        await client.close()
    assert codes == [1012]


# --- on a real one ----------------------------------------------------------------------------------------------------


async def test_a_real_cluster_says_what_it_says_over_http(up: Up):
    """By push-to-talk, at the model's own rate: the very words and samples of /v1/turns, and a second turn that knows
    the first."""
    with Client(up.url) as own:
        events = list(own.turn(question(), max_new_tokens=TOKENS))
    audio = {"type": "audio/pcm", "rate": 16_000}
    async with client_of(up.url) as client, client.realtime.connect(model="tiny") as connection:
        await connection.session.update(
            session={
                "type": "realtime",
                "max_output_tokens": TOKENS,
                "audio": {"input": {"turn_detection": None, "format": audio}, "output": {"format": audio}},
            }
        )
        answers = []
        for _ in range(2):
            await say(connection, wav.to_pcm16(tone()))
            await connection.input_audio_buffer.commit()
            await connection.response.create()
            answers.append(await hear(connection))
    first, second = answers
    assert first.text == "".join(each.text for each in events if isinstance(each, TextDelta)) != ""
    assert first.pcm16 == b"".join(each.pcm16 for each in events if isinstance(each, AudioDelta)) != b""
    assert second.response.usage.input_tokens > first.response.usage.total_tokens
    assert second.pcm16


async def test_a_real_cluster_hears_and_is_interrupted(up: Up):
    """With turn detection at 24 kHz, as it comes: speech over an answer ends it, and is answered itself."""
    async with client_of(up.url) as client, client.realtime.connect(model="tiny") as connection:
        await connection.session.update(session={"type": "realtime", "max_output_tokens": 3 * TOKENS})
        await say(connection, spoken())
        async for event in connection:
            assert event.type != "error", event
            if event.type == "response.output_audio.delta":
                break
        await say(connection, spoken())
        first = await hear(connection)
        second = await hear(connection)
    assert second.response.status in ("completed", "incomplete") and second.pcm16
    assert first.response.status == "cancelled" or "conversation.item.truncated" in second.kinds
    assert (
        first.kinds.count("input_audio_buffer.speech_started") + second.kinds.count("input_audio_buffer.speech_started")
        == 1
    ), "the first one's start was heard before"
