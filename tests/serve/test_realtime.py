"""WS /v1/realtime over a real socket: push-to-talk, turn detection, interruption, bad input, limits."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from fake_cluster import FakeCluster, config, over_tcp, tone, whole_answer
from realtime_client import talk

from omni.audio import wav
from omni.serve.controller import make_app
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


async def test_silence_and_a_tone_start_nothing(url, cluster):
    async with talk(url) as client:
        await client.update(**DETECTED)
        quiet = wav.to_pcm16(np.random.default_rng(0).normal(0, 0.001, 16_000).astype(np.float32))
        await client.append(silence(1.0) + quiet + silence(1.0))
        await client.update()
        assert client.of("input_audio_buffer.speech_started") == []
    assert cluster.requests == []


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
