"""POST /v1/turns: bytes in, events out."""

import asyncio
import base64
import json

import httpx
from fake_cluster import (
    WORDS,
    config,
    in_process,
    lost_worker,
    over_tcp,
    question,
    tone,
    until,
    whole_answer,
)

from omni.audio import wav
from omni.serve import errors
from omni.serve.controller import make_app
from omni.serve.events import FRAMES, JSON_LINES, FrameReader, Started
from omni.serve.protocol import AudioDelta, Done, Failed, TextDelta


async def ask(app, body: bytes, **kwargs) -> httpx.Response:
    async with in_process(app) as http:
        return await http.post("/v1/turns", content=body, **kwargs)


def read(response: httpx.Response) -> list:
    return list(FrameReader().feed(response.content))


async def test_answer_is_whole(app, cluster):
    """Text and sound, joined, are the answer; one Started comes first, one Done last."""
    response = await ask(app, question(), params={"seed": 7})
    assert response.status_code == 200 and response.headers["content-type"] == FRAMES
    started, *middle, done = read(response)
    text, pcm = whole_answer()
    assert started == Started(response.headers["x-request-id"], "fake", 16_000, 7)
    assert "".join(each.text for each in middle if isinstance(each, TextDelta)) == text
    assert b"".join(each.pcm16 for each in middle if isinstance(each, AudioDelta)) == pcm
    assert isinstance(done, Done) and (done.text, done.finish, done.num_tokens) == (text, "stop", len(WORDS))
    assert done.num_samples == len(pcm) // 2


async def test_audio_events_say_where_they_start(app):
    """first_sample counts on without gap or overlap."""
    at = 0
    for event in read(await ask(app, question())):
        if isinstance(event, AudioDelta):
            assert event.first_sample == at
            at += len(event.pcm16) // 2
    assert at > 0


async def test_json_lines(app):
    """With `accept: application/x-ndjson` the same events are lines of JSON."""
    response = await ask(app, question(), headers={"accept": JSON_LINES})
    events = [json.loads(line) for line in response.content.splitlines()]
    text, pcm = whole_answer()
    assert events[0]["type"] == "start" and events[-1]["type"] == "done"
    assert "".join(each["text"] for each in events if each["type"] == "text") == text
    assert b"".join(base64.b64decode(each["pcm16"]) for each in events if each["type"] == "audio") == pcm


async def test_the_worker_gets_the_question(app, cluster):
    """The samples arrive bit for bit, with the options of the query string."""
    params = {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "max_new_tokens": 4, "seed": -3, "system": "Be brief."}
    response = await ask(app, question(), params=params)
    (request,) = cluster.requests
    system, user = request.messages
    assert (system.role, system.text) == ("system", "Be brief.")
    assert user.role == "user" and user.pcm16 == wav.to_pcm16(tone())
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 3)
    assert (sampling.max_new_tokens, sampling.seed) == (4, -3)
    assert read(response)[-1].finish == "length"


async def test_bare_pcm(app, cluster):
    """audio/pcm takes samples without a file around them, at any rate and any number of channels."""
    stereo = b"".join(2 * tone_bytes for tone_bytes in _samples(wav.to_pcm16(tone(rate=16_000))))
    response = await ask(app, stereo, headers={"content-type": "audio/pcm; rate=16000; channels=2"})
    assert response.status_code == 200
    assert cluster.requests[0].messages[0].pcm16 == wav.to_pcm16(tone())


def _samples(pcm: bytes) -> list[bytes]:
    return [pcm[i : i + 2] for i in range(0, len(pcm), 2)]


async def test_seed_is_told_when_none_was_given(app, cluster):
    """A turn can be asked for again."""
    started = read(await ask(app, question()))[0]
    assert started.seed == cluster.requests[0].sampling.seed


async def test_events_come_as_they_are_made(app, cluster):
    """The first text is heard while the rest is still being thought of."""
    cluster.gate = asyncio.Event()
    reader, events = FrameReader(), []
    async with (
        over_tcp(app) as url,
        httpx.AsyncClient() as http,
        http.stream("POST", f"{url}/v1/turns", content=question()) as response,
    ):
        async for data in response.aiter_raw():
            events += reader.feed(data)
            if not cluster.gate.is_set() and any(isinstance(each, TextDelta) for each in events):
                assert cluster.tokens_sent == 1
                cluster.gate.set()
    assert isinstance(events[-1], Done)


async def test_client_that_leaves_stops_the_turn(app, cluster):
    """No further token is made for nobody, and the place is free again."""
    cluster.gate = asyncio.Event()
    async with over_tcp(app) as url, httpx.AsyncClient() as http:
        async with http.stream("POST", f"{url}/v1/turns", content=question()) as response:
            await anext(aiter(response.aiter_raw()))
        await until(lambda: not app.state.registry.live)
    assert cluster.closed == [request.turn_id for request in cluster.requests] != []
    assert cluster.tokens_sent <= 1
    assert counters(app)["cancelled"] == 1


async def test_client_that_leaves_before_the_first_event(app, cluster):
    """Leaving while the turn waits for a worker gives everything back as well."""
    cluster.gate = asyncio.Event()
    cluster.gate_at = 0
    async with over_tcp(app) as url, httpx.AsyncClient() as http:
        asking = asyncio.create_task(http.post(f"{url}/v1/turns", content=question()))
        await until(lambda: cluster.requests)
        asking.cancel()
        await until(lambda: not app.state.registry.live)
    assert cluster.tokens_sent == 0 and cluster.closed
    assert counters(app)["cancelled"] == 1


async def test_worker_lost_before_the_first_event(app, cluster):
    """While nothing was sent, an error has its HTTP status and says when to try again."""
    cluster.error = lost_worker()
    response = await ask(app, question())
    assert response.status_code == 502 and int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["code"] == "worker_lost"
    assert counters(app)["failed"] == 1


async def test_worker_lost_in_the_middle(app, cluster):
    """Once the stream runs, its last event is the error."""
    cluster.error, cluster.error_at = lost_worker(), 5
    response = await ask(app, question())
    assert response.status_code == 200
    *before, last = read(response)
    assert isinstance(last, Failed) and last.code == "worker_lost"
    assert any(isinstance(each, TextDelta) for each in before)
    assert not any(isinstance(each, Done | Failed) for each in before)


async def test_json_lines_end_with_their_error_too(app, cluster):
    cluster.error, cluster.error_at = lost_worker(), 5
    response = await ask(app, question(), headers={"accept": JSON_LINES})
    last = json.loads(response.content.splitlines()[-1])
    assert (last["type"], last["code"]) == ("error", "worker_lost")


async def test_no_free_worker(app, cluster):
    """Busy is not broken: 503 and Retry-After."""
    cluster.error = errors.Busy("No slot.", retry_after=3)
    response = await ask(app, question())
    assert (response.status_code, response.headers["retry-after"]) == (503, "3")
    assert response.json()["error"]["code"] == "busy"
    assert counters(app)["rejected"] == 1


async def test_our_own_mistake(app, cluster, caplog):
    """An unexpected exception is ours: the client learns that, and no detail."""
    cluster.error = RuntimeError("secret detail")
    response = await ask(app, question())
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error" and "secret" not in response.text
    assert "secret detail" in caplog.text


async def test_too_many_turns(tmp_path, cluster):
    """The limit of live turns is answered at once, without reading the question."""
    app = make_app(config(tmp_path, max_turns=1), cluster)
    cluster.gate = asyncio.Event()
    async with over_tcp(app) as url, httpx.AsyncClient() as http:
        first = asyncio.create_task(http.post(f"{url}/v1/turns", content=question()))
        await until(lambda: cluster.tokens_sent == 1)
        second = await http.post(f"{url}/v1/turns", content=question())
        cluster.gate.set()
        assert second.status_code == 503 and "retry-after" in second.headers
        assert (await first).status_code == 200
    assert counters(app) == {"ok": 1, "cancelled": 0, "rejected": 1, "failed": 0}


async def test_slow_reader_is_not_waited_for_for_ever(tmp_path, cluster):
    """A client that takes nothing is gone after the client deadline."""
    app = make_app(config(tmp_path, client_deadline=0.05), cluster)
    stuck = asyncio.Event()

    async def send(message):
        if message["type"] == "http.response.body":
            stuck.set()
            await asyncio.Event().wait()

    await asyncio.wait_for(app(_scope(), _receiver(question()), send), 5)
    assert stuck.is_set() and not app.state.registry.live
    assert counters(app)["cancelled"] == 1 and cluster.closed


def _scope() -> dict:
    return {"type": "http", "method": "POST", "path": "/v1/turns", "raw_path": b"/v1/turns", "query_string": b"",
            "headers": [], "http_version": "1.1", "scheme": "http", "server": None, "client": None, "root_path": "",
            "asgi": {"version": "3.0"}}  # fmt: skip


def _receiver(body: bytes):
    portions = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if portions:
            return portions.pop()
        return await asyncio.Event().wait()

    return receive


async def test_every_frame_boundary(app):
    """A reader that gets one byte at a time reads the same events."""
    content = (await ask(app, question())).content
    reader = FrameReader()
    events = [event for i in range(len(content)) for event in reader.feed(content[i : i + 1])]
    assert events == list(FrameReader().feed(content))


def counters(app) -> dict[str, float]:
    metrics = app.state.registry.metrics
    counted = {name: metrics.ended.labels(name)._value.get() for name in ("ok", "cancelled", "rejected", "failed")}
    assert metrics.started._value.get() == sum(counted.values()) + len(app.state.registry.live)
    return counted
