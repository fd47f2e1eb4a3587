"""The sockets of /v1/realtime: who may connect, how they end, and how much they hold."""

import asyncio
import base64
import json

import pytest
import websockets
from fake_cluster import (
    config,
    over_tcp,
    tone,
    until,
    whole_answer,
)
from realtime_client import talk
from talking import DETECTED, PUSH_TO_TALK, ManyVoices, ended, silence, speech, spoken, written

from omni.audio import wav
from omni.serve.controller import make_app


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
