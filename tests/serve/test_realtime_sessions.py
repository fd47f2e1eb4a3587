"""A live conversation's memory: several turns, what was heard, the window, and what a new socket resumes."""

import asyncio
import logging
from contextlib import asynccontextmanager

import pytest
import websockets
from fake_cluster import UNITS_PER_TOKEN, WORDS, config, over_tcp, tone, until, whole_answer
from realtime_client import RealtimeClient, talk
from websockets.protocol import State

from omni.audio import wav
from omni.serve.controller import make_app
from omni.serve.protocol import Message
from omni.serve.sqlite_store import SqliteStore
from omni.serve.stores import Change, MemoryStore

QUESTION = wav.to_pcm16(tone())
PUSH_TO_TALK = {"audio": {"input": {"turn_detection": None, "format": {"rate": 16000}}}}
TOKEN_MS = UNITS_PER_TOKEN * 20  # of sound, in the fake's voice


@asynccontextmanager
async def controller(directory, cluster, **changes):
    """A controller of its own, on the SQLite file that all of them share."""
    settings = config(directory, **changes)
    store = SqliteStore(directory / "sessions.db", 100, 10**8)
    app = make_app(settings, cluster, store=store)
    async with over_tcp(app) as url:
        yield url, app


async def ask(client: RealtimeClient, pcm16: bytes = QUESTION) -> dict:
    """Push-to-talk: one question and its whole answer."""
    await client.append(pcm16)
    await client.send("input_audio_buffer.commit")
    await client.send("response.create")
    return (await client.until("response.done"))["response"]


async def resume(client: RealtimeClient, token: dict, *expected: str) -> dict:
    await client.send("omni.session.resume", session_id=token["session_id"], token=token["token"])
    return await client.until(*(expected or ("session.updated",)))


def answered(num_tokens: int = len(WORDS) - 1) -> Message:
    """The fake's answer as the next prompt has it: its tokens, without the one that ended it."""
    text = "".join(WORDS) if num_tokens == len(WORDS) - 1 else "".join(WORDS[:num_tokens])
    return Message("assistant", text=text, token_ids=tuple(range(num_tokens)))


# --- several turns ----------------------------------------------------------------------------------------------------


async def test_the_second_turn_knows_the_first(url, cluster):
    """The speech as it was, the answer as its tokens; and it goes to the worker that gave the first."""
    async with talk(url) as client:
        await client.update(**PUSH_TO_TALK)
        await ask(client)
        await ask(client)
    first, second = cluster.requests
    asked = Message("user", pcm16=QUESTION)
    assert second.messages == (asked, answered(), asked)
    assert (first.prefer, second.prefer) == ("", cluster.worker)


async def test_the_first_turn_is_read_again_while_the_second_is_said(url, cluster):
    """By push-to-talk somebody speaks as soon as there is sound; and its worker reads only what is new of the rest."""
    async with talk(url) as client:
        await client.update(**PUSH_TO_TALK)
        await ask(client)
        assert cluster.readings == []
        for _ in range(3):
            await client.append(QUESTION)
        await until(lambda: cluster.readings)
        await client.send("input_audio_buffer.commit")
        await client.send("response.create")
        await client.until("response.done")
    (read,) = cluster.readings
    assert read.messages == cluster.requests[1].messages[:-1] and read.prefer == cluster.worker


async def test_of_a_truncated_answer_the_next_turn_knows_what_was_heard(url, cluster):
    async with talk(url) as client:
        await client.update(**PUSH_TO_TALK)
        response = await ask(client)
        item_id = response["output"][0]["id"]
        end = 4 * TOKEN_MS + TOKEN_MS // 2
        await client.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=end)
        await client.until("conversation.item.truncated")
        await ask(client)
    assert cluster.requests[1].messages[1] == answered(4)


async def test_the_oldest_turns_leave_and_the_client_is_told(tmp_path, cluster):
    """Never a silent cut: whole turns, each item named, before the answer that no longer knows them."""
    async with (
        over_tcp(make_app(config(tmp_path, window_turns=3, window_keep=0.7), cluster)) as url,
        talk(url) as client,
    ):
        await client.update(**PUSH_TO_TALK)
        for _ in range(3):
            await ask(client)
        assert client.of("omni.conversation.window") == []
        questions = [each["item_id"] for each in client.of("input_audio_buffer.committed")]
        answers = [each["item"]["id"] for each in client.of("response.output_item.done")]
        since = len(client.heard)
        await ask(client)
    (told,) = client.of("omni.conversation.window")
    assert told["left"] == [questions[0], answers[0], questions[1], answers[1]]
    assert told["kept"] == 3
    kinds = client.kinds(since)
    assert kinds.index("conversation.item.deleted") < kinds.index("omni.conversation.window")
    assert kinds.index("omni.conversation.window") < kinds.index("response.created")
    assert [each["item_id"] for each in client.of("conversation.item.deleted")] == told["left"]
    assert len(cluster.requests[-1].messages) == 3


# --- resuming ---------------------------------------------------------------------------------------------------------


async def test_a_lost_session_is_resumed(url, cluster):
    """The id, the settings and the items are those from before; the next turn goes on from there."""
    async with talk(url) as client:
        token = client.token
        await client.update(**PUSH_TO_TALK, instructions="Be brief.")
        await ask(client)
        items = [each["item"] for each in client.of("conversation.item.done")]
        client.connection.transport.abort()  # no goodbye
    async with talk(url) as client:
        session = (await resume(client, token))["session"]
        newer = await client.until("omni.session.token")
        assert [each["item"] for each in client.of("conversation.item.done")] == items
        await ask(client)
    assert session["id"] == token["session_id"] == newer["session_id"]
    assert session["instructions"] == "Be brief." and session["audio"]["input"]["turn_detection"] is None
    assert newer["token"] != token["token"]
    assert cluster.requests[1].messages[1:3] == (Message("user", pcm16=QUESTION), answered())
    assert cluster.requests[1].prefer == cluster.worker


async def test_a_restarted_controller_resumes_what_the_one_before_has_saved(tmp_path, cluster):
    """Drained with 1012, and resumed at the next one with the token that the client had."""
    async with controller(tmp_path, cluster) as (url, app), talk(url) as client:
        token = client.token
        await client.update(**PUSH_TO_TALK)
        await ask(client)
        draining = asyncio.create_task(app.state.registry.drain(5))
        with pytest.raises(websockets.ConnectionClosedError) as closed:
            while True:
                await client.next()
        assert closed.value.rcvd.code == 1012
        await draining
    async with controller(tmp_path, cluster) as (url, app), talk(url) as client:
        await resume(client, token)
        await client.until("omni.session.token")
        await ask(client)
    assert cluster.requests[1].messages[1] == answered()


class WatchedStore(MemoryStore):
    """Shows what was written last."""

    last = Change(b"")

    async def write(self, session_id: str, owner: str, change: Change, lifetime: float) -> bool:
        kept = await super().write(session_id, owner, change, lifetime)
        self.last = change
        return kept


async def test_an_answer_under_way_keeps_what_was_heard(tmp_path, cluster):
    """The socket is lost in the middle of an answer: it is incomplete, as far as the client reported to have played."""
    cluster.gate, cluster.gate_at = asyncio.Event(), 8
    store = WatchedStore(10, 10**7)
    async with over_tcp(make_app(config(tmp_path), cluster, store=store)) as url:
        async with talk(url) as client:
            token = client.token
            await client.update(**PUSH_TO_TALK)
            await client.append(QUESTION)
            await client.send("input_audio_buffer.commit")
            await client.send("response.create")
            while len(client.sound()) < 32 * (TOKEN_MS + 5):  # bytes: what is played has come before
                delta = await client.until("response.output_audio.delta")
            await client.send("omni.playback", item_id=delta["item_id"], played_ms=TOKEN_MS + 5)
            await client.update()
        await until(lambda: any(b'"incomplete"' in part for part in store.last.parts.values()))
        cluster.gate = None
        async with talk(url) as client:
            await resume(client, token)
            await client.until("omni.session.token")
            last = client.of("conversation.item.done")[-1]["item"]
            await ask(client)
        assert last["status"] == "incomplete" and last["content"][0]["transcript"] == WORDS[0]
        assert cluster.requests[1].messages[1] == answered(1)


@pytest.mark.parametrize("wrong", ["used", "guessed", "another session's", "unknown session"])
async def test_a_token_that_is_not_good_resumes_nothing(url, wrong):
    """A typed error, and the new session goes on as it is; nothing tells whether the session exists."""
    async with talk(url) as other, talk(url) as client:
        token, strange = client.token, other.token
        tried = {
            "used": token,
            "guessed": token | {"token": "x" * 43},
            "another session's": token | {"token": strange["token"]},
            "unknown session": token | {"session_id": "sess_000000000000000000000000"},
        }[wrong]
        if wrong == "used":
            async with talk(url) as first:
                await resume(first, token)
                await first.send("omni.session.acknowledge")
                await first.update()
        async with talk(url) as thief:
            error = (await resume(thief, tried, "error"))["error"]
            assert (error["code"], error["type"]) == ("session_not_resumable", "invalid_request_error")
            await thief.update(**PUSH_TO_TALK)
            assert (await ask(thief))["status"] == "completed"


async def test_a_token_lost_on_its_way_loses_no_session(url, cluster):
    """The line breaks before the new one has come: the old one resumes the session again, until the new one is used."""
    async with talk(url) as client:
        first = client.token
        await client.update(**PUSH_TO_TALK)
        await ask(client)
        items = [each["item"] for each in client.of("conversation.item.done")]
    async with talk(url) as client:
        await client.send("omni.session.resume", session_id=first["session_id"], token=first["token"])
        client.connection.transport.abort()  # and nothing of the answer is read
    await until(lambda: client.connection.state is State.CLOSED)
    for token in (first, first):
        async with talk(url) as client:
            await resume(client, token)
            newer = await client.until("omni.session.token")
            assert [each["item"] for each in client.of("conversation.item.done")] == items
    async with talk(url) as client:
        await resume(client, newer)
        await client.until("omni.session.token")
        await ask(client)
        assert cluster.requests[-1].messages[1] == answered()
        async with talk(url) as thief:
            assert (await resume(thief, first, "error"))["error"]["code"] == "session_not_resumable"
        assert (await ask(client))["status"] == "completed"


async def test_an_acknowledged_token_is_the_only_one(url):
    """Then nobody comes with the old one; to acknowledge what was never resumed is no error."""
    async with talk(url) as client:
        token = client.token
        await client.send("omni.session.acknowledge")
        await client.update()
    async with talk(url) as client:
        await resume(client, token)
        newer = await client.until("omni.session.token")
        await client.send("omni.session.acknowledge")
        await client.update()
        async with talk(url) as thief:
            assert (await resume(thief, token, "error"))["error"]["code"] == "session_not_resumable"
        assert (await client.update())["id"] == token["session_id"]
    async with talk(url) as client:
        await resume(client, newer)


class StoreThatSettlesLate(MemoryStore):
    def __init__(self) -> None:
        super().__init__(10, 10**7)
        self.gate = asyncio.Event()

    async def settle(self, session_id: str, owner: str) -> None:
        await self.gate.wait()
        await super().settle(session_id, owner)


async def test_a_slow_store_holds_up_nothing_that_is_heard(tmp_path, cluster):
    """While it has not answered to an acknowledgement, a question is heard and answered."""
    store = StoreThatSettlesLate()
    async with over_tcp(make_app(config(tmp_path), cluster, store=store)) as url:
        async with talk(url) as client:
            token = client.token
        async with talk(url) as client:
            await resume(client, token)
            await client.until("omni.session.token")
            await client.send("omni.session.acknowledge")
            await client.update(**PUSH_TO_TALK)
            assert (await ask(client))["status"] == "completed"
            store.gate.set()


async def test_who_resumes_a_session_is_its_only_owner(url):
    """The older socket hears it when it has something to keep, and is closed."""
    async with talk(url) as older, talk(url) as newer:
        await resume(newer, older.token)
        await older.send("session.update", session={"type": "realtime", "instructions": "Mine."})
        error = await older.until("error")
        assert error["error"]["code"] == "session_taken"
        with pytest.raises(websockets.ConnectionClosedError) as closed:
            await older.next()
        assert closed.value.rcvd.code == 1008
        assert (await newer.update())["instructions"] == ""


async def test_a_session_is_resumed_before_anything_is_said(url):
    async with talk(url) as first, talk(url) as client:
        token = first.token
        await client.update(**PUSH_TO_TALK)
        await ask(client)
        assert (await resume(client, token, "error"))["error"]["code"] == "session_in_use"
        assert (await ask(client))["status"] == "completed"


async def test_settings_that_this_controller_does_not_allow_are_its_own_again(tmp_path, cluster):
    async with controller(tmp_path, cluster) as (url, _), talk(url) as client:
        token = client.token
        await client.update(**PUSH_TO_TALK, max_output_tokens=200)
    async with controller(tmp_path, cluster, max_new_tokens=100) as (url, _), talk(url) as client:
        assert (await resume(client, token))["session"]["max_output_tokens"] == "inf"


async def test_no_token_is_logged(url, caplog):
    caplog.set_level(logging.DEBUG)
    async with talk(url) as client:
        token = client.token
        await client.update(**PUSH_TO_TALK)
        await ask(client)
    async with talk(url) as client:
        await resume(client, token)
        newer = await client.until("omni.session.token")
    ours = "".join(record.getMessage() for record in caplog.records if not record.name.startswith("websockets"))
    assert token["token"] not in ours and newer["token"] not in ours


async def test_nothing_stays_of_sockets_that_have_gone(tmp_path, cluster):
    """Twenty sockets, each with a question: no task is left, and the store keeps their sessions alone."""
    app = make_app(config(tmp_path), cluster)
    async with over_tcp(app) as url:
        async with talk(url):
            pass
        await until(lambda: not app.state.registry.sockets)
        before = len(asyncio.all_tasks())
        for _ in range(20):
            async with talk(url) as client:
                await client.update(**PUSH_TO_TALK)
                await ask(client)
        await until(lambda: not app.state.registry.sockets and len(asyncio.all_tasks()) <= before)
    assert whole_answer()[1] == client.sound()
