"""A session survives its connection, for whoever holds its token."""

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from fake_cluster import config

from omni.serve.alignment import Alignment
from omni.serve.config import ServeConfig
from omni.serve.conversation import Item
from omni.serve.errors import NotResumable
from omni.serve.sessions import Session, Sessions
from omni.serve.sqlite_store import SqliteStore
from omni.serve.stores import Change, MemoryStore

ANSWER = Alignment((1, 2), "Né, well", (2, 8), (8_000, 16_000), 20_000, whole=True)


@pytest.fixture
def settings(tmp_path: Path) -> ServeConfig:
    return config(tmp_path)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(10, 10**7)


@pytest.fixture
def sessions(settings, store) -> Sessions:
    return Sessions(settings, store)


def say(session: Session) -> None:
    """A question, an answer that was interrupted, a written question."""
    session.worker = "worker 1"
    session.conversation.add(Item.speech(b"\1\2" * 8_000, "q"))
    session.conversation.begin_answer("a")
    session.conversation.end_answer("a", ANSWER, heard=9_000, completed=False)
    session.conversation.add(Item.written("user", "And \ud800 then?", "t"), after="root")


async def test_a_session_is_resumed_as_it_was(sessions):
    session, token = await sessions.open({"voice": "any"})
    say(session)
    assert await sessions.save(session)
    again, _ = await sessions.resume(session.id, token)
    assert again.conversation.items == session.conversation.items
    assert [item.id for item in again.conversation] == ["t", "q", "a"]
    assert again.conversation.messages() == session.conversation.messages()
    assert (again.settings, again.worker) == ({"voice": "any"}, "worker 1")


async def test_a_restarted_controller_knows_its_sessions(settings, tmp_path):
    path = tmp_path / "sessions.db"
    first = Sessions(settings, SqliteStore(path, 10, 10**7))
    session, token = await first.open()
    say(session)
    await first.save(session)
    await first.close()
    second = Sessions(settings, SqliteStore(path, 10, 10**7))
    again, _ = await second.resume(session.id, token)
    assert again.conversation.messages() == session.conversation.messages()
    await second.close()


@pytest.mark.parametrize("proof", ["used", "acknowledged"])
async def test_a_token_is_spent_once_the_client_has_the_next_one(sessions, proof):
    session, first = await sessions.open()
    again, second = await sessions.resume(session.id, first)
    if proof == "used":
        _, third = await sessions.resume(session.id, second)
    else:
        await sessions.acknowledge(again)
        third = second
    with pytest.raises(NotResumable):
        await sessions.resume(session.id, first)
    _, fourth = await sessions.resume(session.id, third)
    assert len({first, second, third, fourth}) == 3 + (proof == "used")


async def test_a_token_that_is_lost_on_its_way_loses_no_session(sessions):
    """The one before resumes it again, as it was saved last; the lost one is nobody's."""
    session, first = await sessions.open()
    say(session)
    await sessions.save(session)
    nobody, lost = await sessions.resume(session.id, first)
    nobody.conversation.delete("t")
    assert await sessions.save(nobody)
    again, second = await sessions.resume(session.id, first)
    assert [item.id for item in again.conversation] == ["q", "a"]
    with pytest.raises(NotResumable):
        await sessions.resume(session.id, lost)
    await sessions.acknowledge(nobody)  # too late: it is no longer its session
    await sessions.resume(session.id, first)
    assert not await sessions.save(again)
    with pytest.raises(NotResumable):
        await sessions.resume(session.id, second)


@pytest.mark.parametrize(
    ("session_id", "token"),
    [("sess_1", None), (None, ""), (None, "guessed"), (None, "\ud800"), ("x" * 10**6, None), (None, "x" * 10**6)],
    ids=["another session", "no token", "guessed", "no text", "long id", "long token"],
)
async def test_a_guess_resumes_nothing(sessions, session_id, token):
    """The same error for all of them; the session stays as it is."""
    session, good = await sessions.open()
    with pytest.raises(NotResumable) as told:
        await sessions.resume(session_id or session.id, good if token is None else token)
    assert (told.value.status, told.value.code) == (404, "session_not_resumable")
    assert await sessions.resume(session.id, good)


async def test_a_token_is_bound_to_its_session(sessions):
    one, _ = await sessions.open()
    _, token = await sessions.open()
    with pytest.raises(NotResumable):
        await sessions.resume(one.id, token)


async def test_of_several_connections_with_one_token_one_owns_the_session(sessions):
    session, token = await sessions.open()
    results = await asyncio.gather(*(sessions.resume(session.id, token) for _ in range(5)))
    assert [await sessions.save(each) for each, _ in results] == [False] * 4 + [True]


async def test_a_connection_whose_session_was_resumed_elsewhere_can_change_nothing(sessions):
    session, token = await sessions.open()
    again, newer = await sessions.resume(session.id, token)
    say(session)
    assert not await sessions.save(session)
    await sessions.forget(session)
    assert (await sessions.resume(again.id, newer))[0].conversation.items == []


async def test_only_what_is_new_is_written(sessions, store, monkeypatch):
    """A question's speech once, however long the conversation goes on; what left the window is forgotten."""
    session, token = await sessions.open()
    changes: list[Change] = []
    write = store.write
    monkeypatch.setattr(store, "write", lambda i, o, change, t: changes.append(change) or write(i, o, change, t))
    say(session)
    await sessions.save(session)
    await sessions.save(session)
    session.conversation.truncate("a", 500)
    await sessions.save(session)
    session.conversation.delete("q")
    await sessions.save(session)
    assert [set(change.parts) for change in changes] == [{"t", "q", "a"}, set(), {"a"}, set()]
    assert [list(change.gone) for change in changes] == [[], [], [], ["q"]]
    again, _ = await sessions.resume(session.id, token)
    assert [item.id for item in again.conversation] == ["t", "a"]


async def test_after_it_was_resumed_only_what_is_new_is_written(sessions, store, monkeypatch):
    session, token = await sessions.open()
    say(session)
    await sessions.save(session)
    again, _ = await sessions.resume(session.id, token)
    changes: list[Change] = []
    write = store.write
    monkeypatch.setattr(store, "write", lambda i, o, change, t: changes.append(change) or write(i, o, change, t))
    await sessions.save(again)
    assert changes[0].parts == {}


async def test_an_answer_in_progress_was_interrupted(sessions):
    """Its controller is gone: nothing of it is known to have been heard."""
    session, token = await sessions.open()
    session.conversation.add(Item.speech(b"\1\2" * 8_000, "q"))
    session.conversation.begin_answer("a")
    await sessions.save(session)
    again, _ = await sessions.resume(session.id, token)
    assert again.conversation.find("a").status == "incomplete"
    assert len(again.conversation.messages()) == 1


async def test_another_models_tokens_are_not_taken_over(sessions, settings, store):
    """The words that were heard are."""
    session, token = await sessions.open()
    say(session)
    await sessions.save(session)
    other = Sessions(replace(settings, model_name="other"), store)
    again, _ = await other.resume(session.id, token)
    answer = again.conversation.messages()[-1]
    assert (answer.text, answer.token_ids) == ("Né", None)


async def test_a_session_expires(settings):
    now = [0.0]
    sessions = Sessions(replace(settings, session_expiry=60), MemoryStore(10, 10**6, lambda: now[0]))
    session, token = await sessions.open()
    now[0] = 59
    await sessions.save(session)
    now[0] = 118
    _, token = await sessions.resume(session.id, token)
    now[0] = 178
    with pytest.raises(NotResumable):
        await sessions.resume(session.id, token)


async def test_no_store_holds_a_token(settings, tmp_path):
    path = tmp_path / "sessions.db"
    sessions = Sessions(settings, SqliteStore(path, 10, 10**7))
    session, first = await sessions.open()
    say(session)
    await sessions.save(session)
    _, second = await sessions.resume(session.id, first)
    await sessions.close()
    kept = b"".join(each.read_bytes() for each in tmp_path.glob("sessions.db*"))
    assert session.id.encode() in kept
    assert first.encode() not in kept and second.encode() not in kept


async def test_no_log_and_no_repr_holds_a_secret(sessions, caplog):
    caplog.set_level(logging.DEBUG)
    session, token = await sessions.open()
    say(session)
    await sessions.save(session)
    with pytest.raises(NotResumable) as told:
        await sessions.resume(session.id, token + "x")
    shown = caplog.text + repr(session) + str(told.value)
    assert token not in shown and session.owner not in shown


async def test_a_living_session_that_had_to_go_is_kept_again(settings):
    """It expired, or others needed the room, while its socket was open: nothing is lost, and the token holds."""
    sessions = Sessions(settings, MemoryStore(1, 10**7))
    session, token = await sessions.open()
    say(session)
    await sessions.save(session)
    await sessions.open()
    assert await sessions.save(session)
    again, _ = await sessions.resume(session.id, token)
    assert len(again.conversation.items) == 3
