"""The controller around the turns: probes, state, metrics, keys, limits, draining, the log."""

import asyncio
import logging
import re
import signal
import socket

import httpx
import pytest
import uvicorn
from fake_cluster import config, in_process, lost_worker, over_tcp, question, until, whole_answer
from prometheus_client.parser import text_string_to_metric_families

from omni.serve.controller import DrainingServer, make_app


@pytest.fixture
async def http(app):
    async with in_process(app) as http:
        yield http


async def samples(http: httpx.AsyncClient) -> dict[str, float]:
    """/metrics as {name{label}: value}."""
    text = (await http.get("/metrics")).text
    return {
        sample.name + "".join(f"[{value}]" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_live(http):
    assert (await http.get("/live")).status_code == 200


async def test_ready_tells_the_truth(app, http, cluster):
    """Ready only while both kinds of worker answer and the controller takes turns."""
    assert (await http.get("/ready")).status_code == 200
    cluster.is_ready = False
    response = await http.get("/ready")
    assert response.status_code == 503 and response.json() == {"ready": False, "workers": False, "draining": False}
    assert "retry-after" in response.headers
    cluster.is_ready = True
    await app.state.registry.drain(0)
    assert (await http.get("/ready")).json() == {"ready": False, "workers": True, "draining": True}


async def test_cluster_state(http):
    """/v1/cluster shows the workers and this controller's turns."""
    state = (await http.get("/v1/cluster")).json()
    assert {each["kind"] for each in state["workers"]} == {"model", "vocoder"}
    assert state["controller"]["live_turns"] == 0 and state["controller"]["model"] == "fake"


async def test_metrics_add_up(http, cluster):
    """started = ok + cancelled + rejected + failed, and the amounts are those of the answers."""
    await http.post("/v1/turns", content=question(0.5))
    await http.post("/v1/chat/completions", json={"model": "fake", "messages": [{"role": "user", "content": "Hi."}]})
    await http.post("/v1/turns", content=b"no audio")
    cluster.error = lost_worker()
    await http.post("/v1/turns", content=question(0.5))
    found = await samples(http)
    ended = {name: found[f"omni_turns_ended_total[{name}]"] for name in ("ok", "cancelled", "rejected", "failed")}
    assert ended == {"ok": 2, "cancelled": 0, "rejected": 1, "failed": 1}
    assert found["omni_turns_started_total"] == sum(ended.values()) and found["omni_turns_live"] == 0
    assert found["omni_errors_total[audio_not_decodable]"] == found["omni_errors_total[worker_lost]"] == 1
    assert found["omni_first_audio_seconds_count"] == 1
    assert found["omni_audio_in_seconds_total"] == pytest.approx(1.0)
    assert found["omni_audio_out_seconds_total"] == pytest.approx(len(whole_answer()[1]) / 2 / 16_000)
    assert found["omni_workers[model]"] == found["omni_workers[vocoder]"] == found["omni_ready"] == 1
    cluster.is_ready = False
    found = await samples(http)
    assert found["omni_workers[model]"] == found["omni_ready"] == 0


async def test_live_turns_are_counted_while_they_run(app, cluster):
    cluster.gate = asyncio.Event()
    async with over_tcp(app) as url, httpx.AsyncClient() as http:
        asking = asyncio.create_task(http.post(f"{url}/v1/turns", content=question()))
        await until(lambda: cluster.tokens_sent)
        assert app.state.registry.metrics.live._value.get() == 1
        cluster.gate.set()
        await asking
    assert app.state.registry.metrics.live._value.get() == 0


async def test_every_error_has_the_envelope(http):
    """A path that is none and a method that is none are told as all else."""
    for response, status in ((await http.get("/nowhere"), 404), (await http.get("/v1/turns"), 405)):
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


async def test_openapi_describes_both_ways_to_ask(http):
    schema = (await http.get("/openapi.json")).json()
    assert "requestBody" in schema["paths"]["/v1/chat/completions"]["post"]
    names = {each["name"] for each in schema["paths"]["/v1/turns"]["post"]["parameters"]}
    assert {"model", "temperature", "seed", "max_new_tokens"} <= names


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "Basic right", "right", "Bearer right\xe9"])
async def test_no_route_without_the_key(tmp_path, cluster, header):
    """With a key set, nothing is told and nothing is done without it."""
    app = make_app(config(tmp_path), cluster, api_key="right")
    async with in_process(app) as http:
        headers = {} if header is None else {"authorization": header.encode("latin-1")}
        for path in ("/metrics", "/v1/models", "/v1/cluster", "/v1/turns", "/openapi.json", "/nowhere"):
            response = await http.request("POST" if path == "/v1/turns" else "GET", path, headers=headers)
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key" and not cluster.requests


async def test_probes_need_no_key(tmp_path, cluster):
    app = make_app(config(tmp_path), cluster, api_key="right")
    async with in_process(app) as http:
        assert (await http.get("/live")).status_code == (await http.get("/ready")).status_code == 200
        assert (await http.get("/v1/models", headers={"authorization": "Bearer right"})).status_code == 200


# --- the log ----------------------------------------------------------------------------------------------------------


async def test_one_line_per_turn(http, cluster, caplog):
    """Ids, counts and milliseconds; nothing that was said."""
    caplog.set_level(logging.INFO, logger="omni")
    response = await http.post("/v1/turns", content=question(), params={"system": "private words"})
    (line,) = [each.getMessage() for each in caplog.records if each.name == "omni.serve.registry"]
    fields = dict(part.split("=") for part in line.removeprefix("turn ").split())
    assert fields["id"] == response.headers["x-request-id"] and fields["outcome"] == "ok"
    assert (fields["tokens"], fields["in_ms"], fields["finish"]) == ("11", "500", "stop")
    assert {"first_text_ms", "first_audio_ms", "total_ms", "wall_ms", "in_bytes", "out_bytes"} <= set(fields)
    assert "private" not in caplog.text and "fake," not in caplog.text


async def test_refused_turns_have_their_line_too(http, caplog):
    caplog.set_level(logging.INFO, logger="omni.serve.registry")
    await http.post("/v1/turns", content=b"")
    assert re.search(r"outcome=rejected code=audio_empty", caplog.text)


async def test_the_key_is_never_logged(tmp_path, cluster, caplog):
    caplog.set_level(logging.DEBUG)
    app = make_app(config(tmp_path), cluster, api_key="s3cret-key")
    async with in_process(app) as http:
        for key in ("s3cret-key", "wr0ng-key"):
            await http.post("/v1/turns", content=question(), headers={"authorization": f"Bearer {key}"})
    assert "s3cret-key" not in caplog.text and "wr0ng-key" not in caplog.text


# --- limits of what is on its way in ----------------------------------------------------------------------------------


async def test_uploads_together_are_bounded(tmp_path, cluster):
    """Many large bodies at once cannot fill the memory: the one too many is asked to come back."""
    app = make_app(config(tmp_path, max_uploading_bytes=10_000), cluster)
    async with over_tcp(app) as url, httpx.AsyncClient() as http:
        held = asyncio.Event()

        async def slowly():
            yield b"x" * 8_000
            await held.wait()

        first = asyncio.create_task(http.post(f"{url}/v1/turns", content=slowly()))
        await until(lambda: app.state.registry.uploading == 8_000)
        second = await http.post(f"{url}/v1/turns", content=b"x" * 8_000)
        held.set()
        assert (second.status_code, second.json()["error"]["code"]) == (503, "busy")
        assert (await first).json()["error"]["code"] == "audio_not_decodable"
    assert app.state.registry.uploading == 0


HALF_A_REQUEST = b"POST /v1/turns HTTP/1.1\r\nHost: omni\r\nContent-Length: 1000\r\n\r\nRIFF"


async def test_upload_that_never_ends_in_time(tmp_path, cluster):
    """A question must have arrived by its deadline: 408, and the connection is closed."""
    app = make_app(config(tmp_path, upload_deadline=0.05), cluster)
    async with over_tcp(app) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
        writer.write(HALF_A_REQUEST)
        head, body = (await asyncio.wait_for(reader.read(), 5)).split(b"\r\n\r\n")
        writer.close()
    assert head.startswith(b"HTTP/1.1 408") and b"upload_too_slow" in body


async def test_slow_questions_take_no_place(tmp_path, cluster):
    """Many requests that arrive a byte at a time do not keep a normal one from its answer."""
    app = make_app(config(tmp_path, max_turns=1), cluster)
    async with over_tcp(app) as url, httpx.AsyncClient() as http:
        slow = [await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1])) for _ in range(20)]
        for _, writer in slow:
            writer.write(HALF_A_REQUEST)
        await until(lambda: app.state.registry.uploading == 4 * len(slow))
        assert (await http.post(f"{url}/v1/turns", content=question())).status_code == 200
        for _, writer in slow:
            writer.close()
        await until(lambda: not app.state.registry.live)
    assert app.state.registry.uploading == 0


async def test_client_that_leaves_during_its_upload(app, cluster):
    """Half a question and a closed connection are a cancelled turn."""
    async with over_tcp(app) as url:
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
        writer.write(HALF_A_REQUEST)
        await until(lambda: app.state.registry.uploading == 4)
        writer.close()
        await until(lambda: not app.state.registry.live)
    assert app.state.registry.metrics.ended.labels("cancelled")._value.get() == 1
    assert not cluster.requests and app.state.registry.uploading == 0


# --- draining ---------------------------------------------------------------------------------------------------------


async def test_drain_lets_live_turns_end(app, cluster):
    """Who is being answered is answered to the end; who comes now is sent away."""
    cluster.gate = asyncio.Event()
    registry = app.state.registry
    async with over_tcp(app) as url, httpx.AsyncClient() as http:
        first = asyncio.create_task(http.post(f"{url}/v1/turns", content=question()))
        await until(lambda: cluster.tokens_sent)
        drain = asyncio.create_task(registry.drain(30))
        await until(lambda: registry.draining)
        late = await http.post(f"{url}/v1/turns", content=question())
        assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
        cluster.gate.set()
        assert (await first).status_code == 200
        await asyncio.wait_for(drain, 5)
    assert registry.metrics.ended.labels("ok")._value.get() == 1


async def test_drain_ends_at_its_deadline(app, cluster):
    """An endless talker is told, and stopped."""
    cluster.gate = asyncio.Event()
    registry = app.state.registry
    async with over_tcp(app) as url, httpx.AsyncClient() as http:
        headers = {"accept": "application/x-ndjson"}
        first = asyncio.create_task(http.post(f"{url}/v1/turns", content=question(), headers=headers))
        await until(lambda: cluster.tokens_sent)
        await registry.drain(0.05)
        assert '"draining"' in (await first).text.splitlines()[-1]
    assert not registry.live and cluster.closed


async def test_a_signal_drains_the_server(app, cluster):
    """After SIGTERM probes say no, the live turn is heard to its end, and the server leaves by itself."""
    cluster.gate = asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = DrainingServer(uvicorn.Config(app, log_config=None, ws="none"), app.state.registry, 30)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        async with httpx.AsyncClient() as http:
            asking = asyncio.create_task(http.post(f"{url}/v1/turns", content=question()))
            await until(lambda: cluster.tokens_sent)
            server.handle_exit(signal.SIGTERM, None)
            await until(lambda: app.state.registry.draining)
            assert (await http.get(f"{url}/ready")).status_code == 503
            cluster.gate.set()
            assert (await asking).status_code == 200
        await asyncio.wait_for(serving, 10)


async def test_no_turn_is_left_after_a_storm(app, cluster):
    """300 starts, most of them cancelled at once: every place is given back and every turn is counted."""
    registry = app.state.registry
    async with over_tcp(app) as url, httpx.AsyncClient(limits=httpx.Limits(max_connections=50), timeout=30) as http:

        async def start_and_leave(i: int) -> None:
            asking = asyncio.create_task(http.post(f"{url}/v1/turns", content=question(0.1)))
            await asyncio.wait((asking,), timeout=0.002 * (i % 10))
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

        for batch in range(6):
            await asyncio.gather(*(start_and_leave(batch + i) for i in range(50)))
        await until(lambda: not registry.live)
    ended = sum(registry.metrics.ended.labels(name)._value.get() for name in ("ok", "cancelled", "rejected", "failed"))
    assert registry.metrics.started._value.get() == ended
    assert registry.uploading == 0 and len(cluster.closed) == len(cluster.requests)
