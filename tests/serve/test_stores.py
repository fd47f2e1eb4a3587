"""Every store keeps the same promises: in memory, in a SQLite file, in a Redis server."""

import asyncio
import os
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fake_cluster import config
from redis_server import PASSWORD, redis_server

from omni.serve import sqlite_store, stores
from omni.serve.config import ConfigError
from omni.serve.errors import StoreLost
from omni.serve.launch import LaunchFailed, check_store
from omni.serve.sqlite_store import SqliteStore
from omni.serve.stores import Change, MemoryStore, Record, Store, StoreError

HOUR = 3600.0
MAX_SESSIONS, MAX_BYTES = 3, 10_000


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def store(request, tmp_path: Path) -> AsyncIterator[Store]:
    opened: Store
    if request.param == "memory":
        opened = MemoryStore(MAX_SESSIONS, MAX_BYTES)
    elif request.param == "sqlite":
        opened = SqliteStore(tmp_path / "sessions.db", MAX_SESSIONS, MAX_BYTES)
    else:
        from omni.serve.redis_store import RedisStore

        opened = RedisStore(request.getfixturevalue("redis_url"), PASSWORD)
        await opened._redis.flushall()
    yield opened
    await opened.close()


async def test_what_was_written_is_taken(store):
    """Parts are added, replaced and forgotten; the head is the last one."""
    await store.create("s", "me", HOUR)
    assert await store.write("s", "me", Change(b"1", {"a": b"A", "b": b"\0\xff"}), HOUR)
    assert await store.write("s", "me", Change(b"2", {"a": b"AA", "c": b""}, ["b", "unknown"]), HOUR)
    assert await store.take("s", "me", "you", HOUR) == Record(b"2", {"a": b"AA", "c": b""})


async def test_a_new_session_is_empty(store):
    assert await store.create("s", "me", HOUR)
    assert not await store.create("s", "you", HOUR), "and it is new once"
    assert await store.take("s", "me", "me", HOUR) == Record(b"", {})


async def test_who_took_a_session_is_its_only_owner(store):
    """The one before can neither write, nor take, nor delete."""
    await store.create("s", "me", HOUR)
    await store.write("s", "me", Change(b"mine"), HOUR)
    assert await store.take("s", "me", "you", HOUR) is not None
    await store.settle("s", "you")
    assert not await store.write("s", "me", Change(b"late"), HOUR)
    assert await store.take("s", "me", "me", HOUR) is None
    await store.delete("s", "me")
    assert await store.write("s", "you", Change(b"yours"), HOUR)
    assert await store.take("s", "you", "you", HOUR) == Record(b"yours", {})


async def test_whom_a_session_was_taken_from_takes_it_again(store):
    """Its new secret may be lost on the way: until the new owner is heard of, the one before comes with the old one."""
    await store.create("s", "me", HOUR)
    await store.write("s", "me", Change(b"mine"), HOUR)
    assert await store.take("s", "me", "lost", HOUR) is not None
    assert not await store.write("s", "me", Change(b"late"), HOUR), "but it does nothing else"
    assert await store.take("s", "me", "you", HOUR) == Record(b"mine", {})
    assert await store.take("s", "lost", "thief", HOUR) is None
    assert await store.write("s", "you", Change(b"yours"), HOUR), "to keep is not to have the secret: see below"
    assert await store.take("s", "me", "you too", HOUR) == Record(b"yours", {})


@pytest.mark.parametrize("proof", ["settled", "taken"])
async def test_once_the_new_owner_is_heard_of_the_one_before_is_nobody(store, proof):
    await store.create("s", "me", HOUR)
    await store.take("s", "me", "you", HOUR)
    await store.settle("s", "me")
    await store.settle("unknown", "me")
    if proof == "settled":
        await store.settle("s", "you")
    else:
        await store.take("s", "you", "you later", HOUR)
    assert await store.take("s", "me", "thief", HOUR) is None
    assert await store.take("s", "", "thief", HOUR) is None
    assert await store.take("s", "you", "you again", HOUR) is not None


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_whom_a_session_was_taken_from_takes_it_again_for_a_minute(kind, tmp_path):
    """Counted from the first taking: neither a save nor another taking begins the minute anew."""
    store, clock = with_clock(kind, tmp_path)
    await store.create("s", "me", HOUR)
    assert await store.take("s", "me", "you", HOUR) is not None
    clock.now += stores.SPENT_SECONDS - 1
    assert await store.write("s", "you", Change(b"saved"), HOUR)
    assert await store.take("s", "me", "you again", HOUR) == Record(b"saved", {})
    assert await store.write("s", "you again", Change(b"saved"), HOUR)
    clock.now += 1
    assert await store.take("s", "me", "thief", HOUR) is None, "like any unknown one"
    assert await store.write("s", "you again", Change(b"yours"), HOUR)
    assert await store.take("s", "you again", "you later", HOUR) == Record(b"yours", {})
    assert await store.take("s", "you again", "you", HOUR) is not None, "and whoever spends theirs next has a minute"
    await store.close()


async def test_redis_counts_that_minute_by_its_own_clock(redis_url, monkeypatch):
    from omni.serve import redis_store

    store = redis_store.RedisStore(redis_url, PASSWORD)
    await store.create("minute", "me", HOUR)
    await store.take("minute", "me", "you", HOUR)
    left = float(await store._redis.hget("omni:session:minute", "spent_until")) - 1000 * time.time()
    assert 0 < left <= 1000 * stores.SPENT_SECONDS
    monkeypatch.setattr(redis_store, "SPENT_SECONDS", 0.2)
    await store.take("minute", "you", "next", HOUR)
    async with asyncio.timeout(10):
        while await store.take("minute", "you", "next", HOUR) is not None:
            assert await store.write("minute", "next", Change(b"yours"), HOUR)
            await asyncio.sleep(0.005)
    assert await store.take("minute", "next", "next", HOUR) == Record(b"yours", {})
    await store.close()


async def test_of_many_that_take_at_once_one_owns(store):
    await store.create("s", "me", HOUR)
    owners = [f"owner {i}" for i in range(8)]
    await asyncio.gather(*(store.take("s", "me", owner, HOUR) for owner in owners))
    assert sum([await store.write("s", owner, Change(b""), HOUR) for owner in owners]) == 1


async def test_an_unknown_session_is_nobodys(store):
    assert await store.take("s", "me", "me", HOUR) is None
    assert not await store.write("s", "me", Change(b""), HOUR)
    await store.delete("s", "me")


async def test_a_deleted_session_is_gone(store):
    await store.create("s", "me", HOUR)
    await store.write("s", "me", Change(b"1", {"a": b"A"}), HOUR)
    await store.delete("s", "me")
    assert await store.take("s", "me", "me", HOUR) is None
    await store.create("s", "me", HOUR)
    assert await store.take("s", "me", "me", HOUR) == Record(b"", {}), "and its parts with it"


async def test_a_redis_session_expires_by_itself(redis_url):
    from omni.serve.redis_store import RedisStore

    store = RedisStore(redis_url, PASSWORD)
    await store.create("short", "me", 0.001)
    async with asyncio.timeout(10):
        while await store._redis.exists("omni:session:short"):  # noqa: ASYNC110 (Redis sets no event)
            await asyncio.sleep(0.005)
    await store.create("s", "me", HOUR)
    await store.write("s", "me", Change(b"1"), 2 * HOUR)
    assert HOUR < await store._redis.ttl("omni:session:s") <= 2 * HOUR, "a write begins its time anew"
    await store.close()


def with_clock(kind: str, directory: Path) -> tuple[Store, Clock]:
    clock = Clock()
    if kind == "memory":
        return MemoryStore(MAX_SESSIONS, MAX_BYTES, clock), clock
    return SqliteStore(directory / "sessions.db", MAX_SESSIONS, MAX_BYTES, clock), clock


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_session_expires_after_its_last_write(kind, tmp_path):
    store, clock = with_clock(kind, tmp_path)
    await store.create("s", "me", 10)
    clock.now += 9
    assert await store.write("s", "me", Change(b"1"), 10)
    clock.now += 9
    assert await store.take("s", "me", "me", 10)
    clock.now += 10
    assert await store.take("s", "me", "me", 10) is None
    assert not await store.write("s", "me", Change(b"late"), 10)
    await store.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_beyond_the_number_those_idle_for_longest_go(kind, tmp_path):
    store, clock = with_clock(kind, tmp_path)
    for i in range(MAX_SESSIONS):
        await store.create(f"s{i}", "me", HOUR)
        clock.now += 1
    await store.write("s0", "me", Change(b"used"), HOUR)
    await store.create("new", "me", HOUR)
    found = [await store.take(f"s{i}", "me", "me", HOUR) is not None for i in range(MAX_SESSIONS)]
    assert found == [True, False, True]
    await store.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_beyond_the_bytes_those_idle_for_longest_go(kind, tmp_path):
    """Never the one that is written to; what leaves a session makes room again."""
    store, clock = with_clock(kind, tmp_path)
    for name in ("a", "b"):
        await store.create(name, "me", HOUR)
        await store.write(name, "me", Change(b"", {"speech": bytes(4_000)}), HOUR)
        clock.now += 1
    await store.write("a", "me", Change(b"", {}, ["speech"]), HOUR)
    clock.now += 1
    await store.write("b", "me", Change(b"", {"more": bytes(5_900)}), HOUR)
    assert await store.take("a", "me", "me", HOUR) is not None
    clock.now += 1
    await store.write("a", "me", Change(b"", {"speech": bytes(4_000)}), HOUR)
    assert await store.take("b", "me", "me", HOUR) is None
    assert await store.take("a", "me", "me", HOUR) == Record(b"", {"speech": bytes(4_000)})
    await store.close()


async def test_a_file_outlives_its_store(tmp_path):
    """A restarted controller finds what the one before has written; nobody else may read it."""
    path = tmp_path / "sessions.db"
    first = SqliteStore(path, MAX_SESSIONS, MAX_BYTES)
    await first.create("s", "me", HOUR)
    await first.write("s", "me", Change(b"1", {"a": b"A"}), HOUR)
    await first.close()
    second = SqliteStore(path, MAX_SESSIONS, MAX_BYTES)
    assert await second.take("s", "me", "me", HOUR) == Record(b"1", {"a": b"A"})
    assert path.stat().st_mode & 0o077 == 0
    await second.close()


async def test_a_file_of_the_version_before_is_read_on(tmp_path):
    path = tmp_path / "sessions.db"
    with closing(sqlite3.connect(path)) as db, db:
        columns = "id TEXT PRIMARY KEY, owner TEXT NOT NULL, touched REAL NOT NULL, expires REAL NOT NULL"
        db.execute(f"CREATE TABLE sessions ({columns}, head BLOB NOT NULL) WITHOUT ROWID")
        db.execute("INSERT INTO sessions VALUES ('s', 'me', ?, ?, ?)", (time.time(), time.time() + HOUR, b"1"))
    for owner in ("me", "you"):
        store = SqliteStore(path, MAX_SESSIONS, MAX_BYTES)
        assert await store.take("s", owner, "you", HOUR) == Record(b"1", {})
        await store.close()


async def test_two_controllers_may_share_a_file(tmp_path):
    a, b = (SqliteStore(tmp_path / "sessions.db", MAX_SESSIONS, MAX_BYTES) for _ in range(2))
    await a.create("s", "me", HOUR)
    writes = [store.write("s", "me", Change(b"%d" % i), HOUR) for i in range(20) for store in (a, b)]
    assert all(await asyncio.gather(*writes))
    assert await b.take("s", "me", "b", HOUR) is not None
    assert not await a.write("s", "me", Change(b"late"), HOUR)
    await a.close()
    await b.close()


def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, " * 100)
    for wrong in (path, tmp_path / "nowhere" / "sessions.db"):
        with pytest.raises(StoreError, match=f"--store {wrong} cannot be used"):
            SqliteStore(wrong, 1, 1)
    assert path.read_text().startswith("not a database")


async def test_a_locked_file_is_told(tmp_path, monkeypatch):
    """As a typed error, and once the lock is gone the store goes on."""
    monkeypatch.setattr(sqlite_store, "BUSY_SECONDS", 0.01)
    store = SqliteStore(tmp_path / "sessions.db", MAX_SESSIONS, MAX_BYTES)
    with closing(sqlite3.connect(tmp_path / "sessions.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreLost, match="database is locked") as told:
            await store.create("s", "me", HOUR)
        assert told.value.retry_after and told.value.code == "store_lost"
    assert await store.create("s", "me", HOUR)
    await store.close()


async def test_a_full_disk_is_told(tmp_path):
    """Of the write that did not fit nothing is kept; smaller ones are."""
    store = SqliteStore(tmp_path / "sessions.db", MAX_SESSIONS, 10**7)
    await store.create("s", "me", HOUR)
    await store.write("s", "me", Change(b"1"), HOUR)
    await store._do(lambda: store._db.execute("PRAGMA max_page_count = 20"))
    with pytest.raises(StoreLost, match="full"):
        await store.write("s", "me", Change(b"2", {"a": bytes(10**6)}), HOUR)
    assert await store.write("s", "me", Change(b"3", {"b": b"B"}), HOUR)
    assert await store.take("s", "me", "you", HOUR) == Record(b"3", {"b": b"B"})
    await store.close()


async def test_a_damaged_file_is_told(tmp_path):
    path = tmp_path / "sessions.db"
    store = SqliteStore(path, MAX_SESSIONS, 10**7)
    await store.create("s", "me", HOUR)
    await store.write("s", "me", Change(b"1", {"a": bytes(10**5)}), HOUR)
    await store.close()
    with path.open("r+b") as file:  # all but the first page, which has the tables' names
        size = path.stat().st_size - file.seek(4096)
        file.write(b"\xff" * size)
    store = SqliteStore(path, MAX_SESSIONS, 10**7)
    with pytest.raises(StoreLost, match="malformed"):
        await store.take("s", "me", "you", HOUR)
    await store.close()


async def test_a_redis_that_does_not_answer_is_told():
    from omni.serve.redis_store import RedisStore

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    store = RedisStore(f"redis://127.0.0.1:{port}/0")
    with pytest.raises(StoreLost) as told:
        await store.create("s", "me", HOUR)
    assert told.value.retry_after
    await store.close()


async def test_the_configuration_chooses(tmp_path, redis_url):
    kinds = []
    for where in ("", str(tmp_path / "s.db"), redis_url):
        opened = stores.open_store(config(tmp_path, store=where), PASSWORD)
        kinds.append(type(opened).__name__)
        await opened.close()
    assert kinds == ["MemoryStore", "SqliteStore", "RedisStore"]


def test_a_password_is_no_argument(tmp_path):
    """It would stand in the process list, and in the configuration's file."""
    with pytest.raises(ConfigError, match="OMNI_STORE_PASSWORD") as told:
        config(tmp_path, store="redis://:hunter2@redis/0")
    assert "hunter2" not in str(told.value)


def test_nothing_is_left_open(tmp_path):
    """Fifty stores, opened and closed: no file, thread or socket stays."""

    async def once() -> None:
        store = SqliteStore(tmp_path / "s.db", 1, 1)
        await store.create("s", "me", HOUR)
        await store.close()

    asyncio.run(once())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        asyncio.run(once())
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_store_that_cannot_be_opened_ends_the_start(tmp_path):
    """`omni up` says so at once."""
    with pytest.raises(LaunchFailed, match="nowhere"):
        check_store(config(tmp_path, store=str(tmp_path / "nowhere" / "s.db")))
    check_store(config(tmp_path, store=str(tmp_path / "s.db")))
