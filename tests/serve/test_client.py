"""Our own client, blocking and asynchronous: events in order, one end, every failure an event."""

import asyncio
from contextlib import aclosing

import pytest
from fake_cluster import config, lost_worker, over_tcp, question, until, whole_answer

from omni.serve.client import AsyncClient, Client
from omni.serve.controller import make_app
from omni.serve.events import EventError, FrameReader, Started, to_frame
from omni.serve.protocol import AudioDelta, Done, Failed, TextDelta


async def hear(url: str, data: bytes, **options) -> list:
    async with AsyncClient(url) as client:
        return [event async for event in client.turn(data, **options)]


def check_answer(events: list) -> None:
    text, pcm = whole_answer()
    assert "".join(each.text for each in events if isinstance(each, TextDelta)) == text
    assert b"".join(each.pcm16 for each in events if isinstance(each, AudioDelta)) == pcm
    assert [each for each in events if isinstance(each, Done | Failed)] == [events[-1]]


async def test_asynchronous(app):
    async with over_tcp(app) as url:
        check_answer(await hear(url, question(), seed=1))


async def test_blocking(app):
    """The same, in a thread, with the state routes beside it."""

    def talk(url: str) -> None:
        with Client(url) as client:
            check_answer(list(client.turn(question())))
            assert client.get("/ready")["ready"] and client.get("/v1/cluster")["controller"]["live_turns"] == 0

    async with over_tcp(app) as url:
        await asyncio.to_thread(talk, url)


async def test_leaving_the_loop_stops_the_turn(app, cluster):
    cluster.gate = asyncio.Event()
    async with over_tcp(app) as url, AsyncClient(url) as client:
        async with aclosing(client.turn(question())) as events:
            assert isinstance(await anext(events), TextDelta)
        await until(lambda: not app.state.registry.live)
    assert cluster.closed and cluster.tokens_sent <= 1


async def test_refusals_are_events(app):
    """What HTTP says with a status comes as the one event, with its cause."""
    async with over_tcp(app) as url:
        (failed,) = await hear(url, b"no audio")
        assert (failed.code, failed.status) == ("audio_not_decodable", 400)
        (failed,) = await hear(url, question(), temperature=9)
        assert failed.status == 400 and "temperature" in failed.message


async def test_busy_says_when_to_come_back(tmp_path, cluster):
    app = make_app(config(tmp_path), cluster)
    app.state.registry.draining = True
    async with over_tcp(app) as url:
        (failed,) = await hear(url, question())
    assert (failed.code, failed.status, failed.retry_after) == ("draining", 503, 1.0)


async def test_lost_worker(app, cluster):
    cluster.error, cluster.error_at = lost_worker(), 5
    async with over_tcp(app) as url:
        *before, last = await hear(url, question())
    assert before and last.code == "worker_lost"


async def test_nobody_there(app):
    """A controller that is not there is a failed turn, not an exception of the HTTP library."""
    async with over_tcp(app) as url:
        pass
    (failed,) = await hear(url, question())
    assert (failed.code, failed.status) == ("unreachable", 503)


async def answering(content: bytes) -> list:
    """What the client makes of a server that sends these bytes and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + content)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        return await hear(f"http://127.0.0.1:{port}", b"x")


STREAM = to_frame(Started("1", "fake", 16_000, 0)) + to_frame(TextDelta("Hi.")) + to_frame(AudioDelta(b"\0\0", 0))


@pytest.mark.parametrize("cut", range(0, len(STREAM) + 1, 9))
async def test_stream_that_breaks_off(cut):
    """Wherever it is cut: what came is kept, and the end says that it is none."""
    events = await answering(STREAM[:cut])
    assert isinstance(events[-1], Failed) and events[-1].code == "stream_lost"
    assert sum(isinstance(each, Done | Failed) for each in events) == 1


async def test_stream_of_something_else():
    (failed,) = await answering(b"<html>not a controller</html>")
    assert failed.code == "bad_stream"


# --- frames -----------------------------------------------------------------------------------------------------------


def test_unknown_frames_are_skipped():
    """A newer server may send more."""
    more = b"Z" + (3).to_bytes(4, "big") + b"new"
    assert list(FrameReader().feed(more + to_frame(TextDelta("Hi.")))) == [TextDelta("Hi.")]


@pytest.mark.parametrize(
    "frame",
    [b"D\0\0\0\2[]", b"D\0\0\0\2{}", b"D\0\0\0\1{", b"T\0\0\0\1\xff", b"A\xff\xff\xff\xff"],
    ids=["no object", "fields missing", "no JSON", "no UTF-8", "too large"],
)
def test_broken_frames(frame):
    with pytest.raises(EventError):
        list(FrameReader().feed(frame))
