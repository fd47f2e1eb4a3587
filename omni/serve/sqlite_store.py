"""Sessions in one SQLite file, so that a restarted controller knows them: `omni up --store FILE`.

One thread has the connection; the event loop waits for it and never for the disk. The file holds speech: it is made
readable for its owner alone.
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from omni.serve.errors import StoreLost
from omni.serve.stores import SPENT_SECONDS, Change, Record, StoreError

T = TypeVar("T")
BUSY_SECONDS = 5.0  # while another controller on this machine writes
RETRY_AFTER = 1.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, touched REAL NOT NULL, expires REAL NOT NULL, head BLOB NOT NULL,
    spent TEXT, spent_until REAL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parts (
    session TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE, name TEXT NOT NULL, content BLOB NOT NULL,
    size INTEGER GENERATED ALWAYS AS (length(content)) STORED,
    PRIMARY KEY (session, name)
);
CREATE INDEX IF NOT EXISTS sessions_touched ON sessions (touched);
"""


class SqliteStore:
    def __init__(
        self, path: str | Path, max_sessions: int, max_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._max_sessions, self._max_bytes, self._clock = max_sessions, max_bytes, clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sessions")
        try:
            self._db = self._thread.submit(_connect, Path(path)).result()
        except (sqlite3.Error, OSError) as exc:
            self._thread.shutdown()
            raise StoreError(f"--store {path} cannot be used: {exc}.") from exc

    async def create(self, session_id: str, owner: str, lifetime: float) -> bool:
        def work() -> bool:
            self._make_room(1, session_id)
            row = (session_id, owner, *self._times(lifetime), b"")
            columns = "id, owner, touched, expires, head"
            made = self._db.execute(f"INSERT OR IGNORE INTO sessions ({columns}) VALUES (?, ?, ?, ?, ?)", row)
            return made.rowcount == 1

        return await self._do(work)

    async def write(self, session_id: str, owner: str, change: Change, lifetime: float) -> bool:
        def work() -> bool:
            touched, expires = self._times(lifetime)
            kept = self._db.execute(
                "UPDATE sessions SET touched = ?, expires = ? WHERE id = ? AND owner = ? AND expires > ?",
                (touched, expires, session_id, owner, touched),
            )
            if kept.rowcount != 1:
                return False
            self._db.execute("UPDATE sessions SET head = ? WHERE id = ?", (change.head, session_id))
            rows = [(session_id, name, content) for name, content in change.parts.items()]
            self._db.executemany("INSERT OR REPLACE INTO parts (session, name, content) VALUES (?, ?, ?)", rows)
            gone = [(session_id, name) for name in change.gone]
            self._db.executemany("DELETE FROM parts WHERE session = ? AND name = ?", gone)
            if rows:
                self._make_room(0, session_id)
            return True

        return await self._do(work)

    async def take(self, session_id: str, owner: str, new_owner: str, lifetime: float) -> Record | None:
        def work() -> Record | None:
            touched, expires = self._times(lifetime)
            taken = self._db.execute(
                "UPDATE sessions SET owner = :new, spent = :owner, touched = :now, expires = :expires, "
                "spent_until = CASE owner WHEN :owner THEN :now + :spent_seconds ELSE spent_until END "
                "WHERE id = :id AND expires > :now AND (owner = :owner OR spent = :owner AND spent_until > :now)",
                {
                    "id": session_id,
                    "owner": owner,
                    "new": new_owner,
                    "now": touched,
                    "expires": expires,
                    "spent_seconds": SPENT_SECONDS,
                },
            )
            if taken.rowcount != 1:
                return None
            (head,) = self._db.execute("SELECT head FROM sessions WHERE id = ?", (session_id,)).fetchone()
            parts = self._db.execute("SELECT name, content FROM parts WHERE session = ?", (session_id,)).fetchall()
            return Record(head, dict(parts))

        return await self._do(work)

    async def settle(self, session_id: str, owner: str) -> None:
        statement = "UPDATE sessions SET spent = NULL WHERE id = ? AND owner = ?"
        await self._do(lambda: self._db.execute(statement, (session_id, owner)))

    async def delete(self, session_id: str, owner: str) -> None:
        statement = "DELETE FROM sessions WHERE id = ? AND owner = ?"
        await self._do(lambda: self._db.execute(statement, (session_id, owner)))

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._db.close)
        self._thread.shutdown()

    async def _do(self, work: Callable[[], T]) -> T:
        """In the thread, as one transaction. It is let finish when we stop waiting."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work))

    def _transact(self, work: Callable[[], T]) -> T:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            result = work()
            self._db.execute("COMMIT")
            return result
        except sqlite3.Error as exc:  # locked, full, damaged: the next time may go well
            raise StoreLost(f"The session store cannot be used now: {exc}.", retry_after=RETRY_AFTER) from exc
        finally:
            self._roll_back()

    def _roll_back(self) -> None:
        """What was not committed. A full disk has SQLite do so by itself."""
        if self._db.in_transaction:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")

    def _times(self, lifetime: float) -> tuple[float, float]:
        now = self._clock()
        return now, now + lifetime

    def _make_room(self, sessions: int, but: str) -> None:
        """Expired ones go first, then those idle for longest."""
        self._db.execute("DELETE FROM sessions WHERE expires <= ?", (self._clock(),))
        (count,) = self._db.execute("SELECT count(*) FROM sessions").fetchone()
        (size,) = self._db.execute("SELECT coalesce(sum(size), 0) FROM parts").fetchone()
        while count + sessions > self._max_sessions or size > self._max_bytes:
            oldest = self._db.execute(
                "SELECT id, (SELECT coalesce(sum(size), 0) FROM parts WHERE session = id) FROM sessions "
                "WHERE id != ? ORDER BY touched LIMIT 1",
                (but,),
            ).fetchone()
            if oldest is None:
                return
            self._db.execute("DELETE FROM sessions WHERE id = ?", (oldest[0],))
            count, size = count - 1, size - oldest[1]


def _connect(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA secure_delete = ON")  # what is forgotten is overwritten
        db.execute("PRAGMA foreign_keys = ON")
        db.executescript(SCHEMA)
        _upgrade(db)
    except sqlite3.Error:
        db.close()
        raise
    return db


def _upgrade(db: sqlite3.Connection) -> None:
    """A file from before there was `spent`, or its end: there, what was spent is over."""
    db.execute("BEGIN IMMEDIATE")
    there = [name for _, name, *_ in db.execute("PRAGMA table_info(sessions)")]
    for name, kind in (("spent", "TEXT"), ("spent_until", "REAL")):
        if name not in there:
            db.execute(f"ALTER TABLE sessions ADD COLUMN {name} {kind}")
    db.execute("COMMIT")
