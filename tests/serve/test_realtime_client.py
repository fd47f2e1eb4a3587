"""Our own client of live conversations, with a real controller: turns, interruption, lost lines, refusals, no leaks."""

import asyncio
import socket
from contextlib import aclosing, asynccontextmanager

import pytest
import uvicorn
from fake_cluster import UNITS_PER_TOKEN, WORDS, config, over_tcp, tone, until, whole_answer
from realtime_client import talk
from store_away import StoreAway

from omni.audio import wav
from omni.serve import realtime_client as live
from omni.serve.controller import make_app, server_settings
from omni.serve.protocol import Message
from omni.serve.realtime_client import RealtimeError, RealtimeSession, connect_realtime
from omni.serve.sqlite_store import SqliteStore

QUESTION = wav.to_pcm16(tone())
TOKEN_MS = UNITS_PER_TOKEN * 20  # of sound, in the fake's voice
ANSWERED = Message("assistant", text="".join(WORDS), token_ids=tuple(range(len(WORDS) - 1)))


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(live, "FIRST_WAIT", 0.01)


async def hear(session: RealtimeSession, last: type, seconds: float = 20.0) -> list:
    """The events up to the first of this kind."""
    found = []
    async with asyncio.timeout(seconds), aclosing(session.events()) as events:
        async for event in events:
            found.append(event)
            if isinstance(event, last):
                return found
    raise AssertionError(f"the session ended without {last.__name__}: {found}")


def of(events: list, kind: type) -> list:
    return [each for each in events if isinstance(each, kind)]


def check_answer(events: list) -> None:
    text, pcm16 = whole_answer()
    sounds = of(events, live.Sound)
    assert "".join(each.text for each in of(events, live.Words)) == text
    assert b"".join(each.pcm16 for each in sounds) == pcm16
    position = 0
    for each in sounds:
        assert each.first_sample == position and each.item_id
        position += len(each.pcm16) // 2
    assert events[-1].status == "completed" and "first_audio_ms" in events[-1].timing
    assert of(events, live.Problem) == []


async def test_two_turns(app, cluster):
    """The question arrives as it is, the answer in order and whole; the second turn remembers the first."""
    async with over_tcp(app) as url, connect_realtime(url) as session:
        for _ in range(2):
            await session.ask(QUESTION)
            check_answer(await hear(session, live.Answered))
    asked = Message("user", pcm16=QUESTION)
    assert cluster.requests[1].messages == (asked, ANSWERED, asked)


async def test_a_microphone_by_push_to_talk(app, cluster):
    """append, clear, append, commit: only what was said last is asked."""
    async with over_tcp(app) as url, connect_realtime(url) as session:
        await session.append(bytes(6400))
        await session.clear()
        for start in range(0, len(QUESTION), 640):
            await session.append(QUESTION[start : start + 640])
        await session.commit()
        check_answer(await hear(session, live.Answered))
    assert cluster.requests[0].messages == (Message("user", pcm16=QUESTION),)


async def test_an_interruption(app, cluster):
    """Nothing of the answer follows, its worker is told, and the next turn knows only what was heard of it."""
    cluster.gate, cluster.gate_at = asyncio.Event(), 8
    async with over_tcp(app) as url, connect_realtime(url) as session:
        await session.ask(QUESTION)
        sound = (await hear(session, live.Sound))[-1]
        while session.received_ms < TOKEN_MS + 5:
            await hear(session, live.Sound)
        await session.played(sound.item_id, TOKEN_MS)
        await session.interrupt(heard_ms=TOKEN_MS + 5)
        after = await hear(session, live.Answered)
        assert of(after, live.Sound) == of(after, live.Words) == of(after, live.Problem) == []
        assert (after[-1].status, after[-1].reason) == ("cancelled", "client_cancelled")
        await until(lambda: len(cluster.closed) == 1 and not app.state.registry.live)
        cluster.gate = None
        await session.ask(QUESTION)
        check_answer([each for each in await hear(session, live.Answered) if not isinstance(each, live.Other)])
    assert cluster.requests[1].messages[1].token_ids == (0,)


async def test_settings_and_what_is_wrong_with_them(app, cluster):
    async with over_tcp(app) as url, connect_realtime(url, settings={"instructions": "Be brief."}) as session:
        await session.update(temperature=9)
        assert "temperature" in (await hear(session, live.Problem))[-1].message
        await session.update(output_modalities=["text"])
        await session.ask(QUESTION)
        events = await hear(session, live.Answered)
    assert "".join(each.text for each in of(events, live.Words)) == whole_answer()[0]
    assert of(events, live.Sound) == []
    assert cluster.requests[0].messages[0] == Message("system", text="Be brief.")


@asynccontextmanager
async def controller(directory, cluster, port: int = 0):
    """A controller of its own, on the sessions that all of them share; at a port, to come back where one was."""
    app = make_app(config(directory), cluster, store=SqliteStore(directory / "sessions.db", 100, 10**8))
    server = uvicorn.Server(server_settings(app, app.state.registry.config))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    listener = socket.create_server(("127.0.0.1", port))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1], app
    finally:
        server.should_exit = True
        await task
        listener.close()


async def test_a_restarted_controller(tmp_path, cluster):
    """Drained with 1012; the next one at the same address goes on with the session, in the same loop."""
    async with controller(tmp_path, cluster) as (port, app):
        session = RealtimeSession(f"http://127.0.0.1:{port}", None, {"instructions": "Be brief."}, attempts=12)
        await session.open()
        before = session.id
        await session.ask(QUESTION)
        check_answer(await hear(session, live.Answered))
        await app.state.registry.drain(5)
    async with controller(tmp_path, cluster, port):
        try:
            resumed = (await hear(session, live.Resumed))[-1]
            assert resumed == live.Resumed(before, remembers=True, unanswered=False)
            await session.ask(QUESTION)
            check_answer(await hear(session, live.Answered))
        finally:
            await session.close()
    assert cluster.requests[1].messages[2] == ANSWERED


async def test_a_line_that_breaks_in_an_answer(app, cluster):
    """The answer's end and the need to ask again are told; the conversation remembers."""
    cluster.gate, cluster.gate_at = asyncio.Event(), 8
    async with over_tcp(app) as url, connect_realtime(url) as session:
        await session.ask(QUESTION)
        await hear(session, live.Sound)
        session._line.transport.abort()
        events = await hear(session, live.Resumed)
        assert of(events, live.Answered) == [live.Answered("incomplete", "connection_lost")]
        assert (events[-1].remembers, events[-1].unanswered) == (True, True)
        cluster.gate = None
        await session.ask(QUESTION)
        check_answer(await hear(session, live.Answered))
    assert cluster.requests[1].messages[0] == Message("user", pcm16=QUESTION)


async def test_a_session_that_is_gone_is_told(app, cluster):
    async with over_tcp(app) as url, connect_realtime(url) as session:
        before, session._token = session.id, "x" * 43
        session._line.transport.abort()
        resumed = (await hear(session, live.Resumed))[-1]
        assert not resumed.remembers and resumed.session_id == session.id != before
        await session.ask(QUESTION)
        check_answer(await hear(session, live.Answered))


async def test_a_store_that_is_away_loses_no_session(tmp_path, cluster):
    """It is asked again as often as a lost line, and no oftener; the token holds even after that."""
    store = StoreAway(10, 10**7)
    app = make_app(config(tmp_path), cluster, store=store)
    async with over_tcp(app) as url, connect_realtime(url, attempts=3) as session:
        await session.ask(QUESTION)
        check_answer(await hear(session, live.Answered))
        for away in (2, 3):
            store.away, before = away, session.id
            session._line.transport.abort()
            if away == 3:
                with pytest.raises(RealtimeError, match="Tried 3 times") as lost:
                    await hear(session, live.Resumed)
                assert lost.value.code == "store_lost"
            assert (await hear(session, live.Resumed))[-1] == live.Resumed(before, remembers=True, unanswered=False)
        await session.ask(QUESTION)
        check_answer(await hear(session, live.Answered))
    assert cluster.requests[1].messages[1] == ANSWERED


async def test_a_full_controller(tmp_path, cluster):
    """It is asked again, a bounded number of times; a place that is given back is taken."""
    async with over_tcp(make_app(config(tmp_path, max_sockets=1), cluster)) as url:
        async with talk(url):
            with pytest.raises(RealtimeError, match=r"1 conversations are open.*Tried 2 times") as refused:
                async with connect_realtime(url, attempts=2):
                    pass
            assert refused.value.code == "busy"
        async with connect_realtime(url, attempts=9) as session:
            await session.ask(QUESTION)
            check_answer(await hear(session, live.Answered))


async def test_a_wrong_key_says_what_to_do(tmp_path, cluster):
    """At once, without another attempt."""
    async with over_tcp(make_app(config(tmp_path), cluster, api_key="secret")) as url:
        for key in (None, "wrong"):
            with pytest.raises(RealtimeError, match="Set OMNI_API_KEY") as refused:
                async with connect_realtime(url, key):
                    pass
            assert refused.value.code == "invalid_api_key"
        async with connect_realtime(url, "secret") as session:
            assert session.id


async def test_nobody_there(app):
    async with over_tcp(app) as url:
        pass
    with pytest.raises(RealtimeError, match="No controller answers") as refused:
        async with connect_realtime(url, attempts=2):
            pass
    assert refused.value.code == "unreachable"
    with pytest.raises(RealtimeError, match=r"http://127\.0\.0\.1:8000"):
        async with connect_realtime("127.0.0.1"):
            pass


async def test_a_session_with_an_end(tmp_path, cluster):
    """Nothing said for too long ends the loop; the longest session, and one that another resumed, are errors."""
    async with (
        over_tcp(make_app(config(tmp_path, idle_deadline=0.2), cluster)) as url,
        connect_realtime(url) as session,
    ):
        assert [each async for each in session] == []
        with pytest.raises(RealtimeError, match="Connect again"):
            await session.ask(QUESTION)
    async with (
        over_tcp(make_app(config(tmp_path, conversation_deadline=0.2), cluster)) as url,
        connect_realtime(url) as session,
    ):
        with pytest.raises(RealtimeError) as ended:
            [each async for each in session]
    assert ended.value.code == "session_expired"


async def test_nothing_stays(app, cluster):
    """Left in the middle of answers, with the line broken, or by an error: no task and no socket is left."""
    async with over_tcp(app) as url:
        async with connect_realtime(url):
            pass
        await until(lambda: not app.state.registry.sockets)
        before = len(asyncio.all_tasks())
        for i in range(6):
            with pytest.raises(ZeroDivisionError):
                async with connect_realtime(url) as session:
                    await session.ask(QUESTION)
                    await hear(session, live.Words)
                    if i % 2:
                        session._line.transport.abort()
                    raise ZeroDivisionError
        await until(lambda: not app.state.registry.sockets and len(asyncio.all_tasks()) <= before)
    assert sorted(cluster.closed) == sorted(each.turn_id for each in cluster.requests)
