"""Where sessions are kept between two connections: a small contract, the store in memory, and the choice of one.

    store = stores.open_store(config)               # memory; a SQLite file; redis://HOST:PORT/N
    await store.create("sess_1", owner, lifetime=3600.0)
    await store.write("sess_1", owner, Change(head, parts, gone), 3600.0)      # False: no longer the owner's
    record = await store.take("sess_1", owner, new_owner, 3600.0)              # None: not this owner's, or expired
    await store.settle("sess_1", new_owner)                                    # now `owner` cannot take it again
    await store.close()

An owner is the digest of a secret that the client holds. Who takes a session becomes its only owner, in one step: a
late write of the one before changes nothing. But a new secret may never reach its client; so the one it was taken with
takes the session once more, until the new owner has settled or taken it, and for SPENT_SECONDS at most: neither saves
nor another such taking begin that time anew. A store keeps bytes and knows nothing of what they mean.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from omni.serve.config import ServeConfig

SPENT_SECONDS = 60.0  # so long the owner that a session was taken from may take it again


class StoreError(RuntimeError):
    """The store cannot be opened; the message names it."""


@dataclass(frozen=True)
class Change:
    """What is new of a session: its head is replaced, parts are added or replaced by name, others are forgotten."""

    head: bytes
    parts: Mapping[str, bytes] = field(default_factory=dict)
    gone: Sequence[str] = ()

    @property
    def size(self) -> int:
        return len(self.head) + sum(map(len, self.parts.values()))


@dataclass(frozen=True)
class Record:
    head: bytes
    parts: Mapping[str, bytes]


class Store(Protocol):
    """Lifetimes are in seconds from now; every write begins them anew. Raises StoreLost where it cannot be reached, or
    its file is locked, full or damaged."""

    async def create(self, session_id: str, owner: str, lifetime: float) -> bool:
        """A new, empty session; False where there is one. Where there are too many, those idle for longest go."""
        ...

    async def write(self, session_id: str, owner: str, change: Change, lifetime: float) -> bool:
        """False, and nothing changed, where another owns the session or it is gone."""
        ...

    async def take(self, session_id: str, owner: str, new_owner: str, lifetime: float) -> Record | None:
        """All of the session, which is the new owner's from now on. None: there is no such session of this owner, nor
        one that was taken from it last, less than SPENT_SECONDS ago, and is not settled."""
        ...

    async def settle(self, session_id: str, owner: str) -> None:
        """If it is this owner's: the one that it was taken from can do nothing more."""
        ...

    async def delete(self, session_id: str, owner: str) -> None:
        """Forget it, if it is this owner's."""
        ...

    async def close(self) -> None: ...


def open_store(config: ServeConfig, password: str | None = None) -> Store:
    """The store that `--store` names. Its libraries are imported only now."""
    if not config.store:
        return MemoryStore(config.max_sessions, config.max_session_bytes)
    if config.store.startswith(("redis://", "rediss://")):
        from omni.serve.redis_store import RedisStore

        return RedisStore(config.store, password)
    from omni.serve.sqlite_store import SqliteStore

    return SqliteStore(config.store, config.max_sessions, config.max_session_bytes)


@dataclass
class _Kept:
    owner: str
    expires: float
    spent: str | None = None  # the owner that it was taken from, until that is settled …
    spent_until: float = 0.0  # … or this moment is over
    head: bytes = b""
    parts: dict[str, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.head) + sum(map(len, self.parts.values()))


class MemoryStore:
    """Ends with the process."""

    def __init__(self, max_sessions: int, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_sessions, self._max_bytes, self._clock = max_sessions, max_bytes, clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # the one idle for longest first
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    async def create(self, session_id: str, owner: str, lifetime: float) -> bool:
        self._make_room(1, 0, but=session_id)
        if session_id in self._kept:
            return False
        self._kept[session_id] = _Kept(owner, self._clock() + lifetime)
        return True

    async def write(self, session_id: str, owner: str, change: Change, lifetime: float) -> bool:
        kept = self._find(session_id, owner)
        if kept is None:
            return False
        self._touch(session_id, lifetime)
        self._make_room(0, change.size, but=session_id)
        self._bytes -= kept.size
        kept.head = change.head
        kept.parts |= change.parts
        for name in change.gone:
            kept.parts.pop(name, None)
        self._bytes += kept.size
        return True

    async def take(self, session_id: str, owner: str, new_owner: str, lifetime: float) -> Record | None:
        kept = self._living(session_id)
        if kept is None:
            return None
        if owner == kept.owner:
            kept.spent, kept.spent_until = owner, self._clock() + SPENT_SECONDS
        elif owner != kept.spent or kept.spent_until <= self._clock():
            return None
        kept.owner = new_owner
        self._touch(session_id, lifetime)
        return Record(kept.head, dict(kept.parts))

    async def settle(self, session_id: str, owner: str) -> None:
        kept = self._find(session_id, owner)
        if kept is not None:
            kept.spent = None

    async def delete(self, session_id: str, owner: str) -> None:
        if self._find(session_id, owner) is not None:
            self._forget(session_id)

    async def close(self) -> None:
        self._kept.clear()
        self._bytes = 0

    def _living(self, session_id: str) -> _Kept | None:
        kept = self._kept.get(session_id)
        if kept is not None and kept.expires <= self._clock():
            self._forget(session_id)
            return None
        return kept

    def _find(self, session_id: str, owner: str) -> _Kept | None:
        kept = self._living(session_id)
        return kept if kept is not None and kept.owner == owner else None

    def _touch(self, session_id: str, lifetime: float) -> None:
        self._kept[session_id].expires = self._clock() + lifetime
        self._kept.move_to_end(session_id)

    def _make_room(self, sessions: int, size: int, but: str = "") -> None:
        """Expired ones go first, then those idle for longest."""
        now = self._clock()
        for session_id in [each for each, kept in self._kept.items() if kept.expires <= now]:
            self._forget(session_id)
        for session_id in list(self._kept):
            if len(self._kept) + sessions <= self._max_sessions and self._bytes + size <= self._max_bytes:
                return
            if session_id != but:
                self._forget(session_id)

    def _forget(self, session_id: str) -> None:
        self._bytes -= self._kept.pop(session_id).size
