"""What is new of a session is written beside its conversation, in order, and again where it failed."""

import asyncio
from pathlib import Path

import pytest
from fake_cluster import config, until

from omni.serve import keeper as keeping
from omni.serve.conversation import Item
from omni.serve.errors import NotResumable, StoreLost
from omni.serve.keeper import Keeper
from omni.serve.sessions import Sessions
from omni.serve.stores import Change, MemoryStore


class SlowStore(MemoryStore):
    """Notes its writes, waits for the gate, and is away as often as it is told to."""

    def __init__(self) -> None:
        super().__init__(10, 10**7)
        self.gate = asyncio.Event()
        self.gate.set()
        self.away = 0
        self.done: list[str] = []

    async def write(self, session_id: str, owner: str, change: Change, lifetime: float) -> bool:
        await self._answer("write")
        return await super().write(session_id, owner, change, lifetime)

    async def settle(self, session_id: str, owner: str) -> None:
        await self._answer("settle")
        await super().settle(session_id, owner)

    async def _answer(self, name: str) -> None:
        await self.gate.wait()
        if self.away:
            self.away -= 1
            raise StoreLost("It is away.")
        self.done.append(name)


@pytest.fixture
def store() -> SlowStore:
    return SlowStore()


@pytest.fixture
def sessions(tmp_path: Path, store: SlowStore) -> Sessions:
    return Sessions(config(tmp_path), store)


async def resumed(sessions: Sessions) -> tuple[Keeper, str]:
    """The keeper of a session that was resumed, and the token that was spent for it."""
    session, spent = await sessions.open()
    session, _ = await sessions.resume(session.id, spent)
    return Keeper(sessions, session, taken=lambda: None), spent


async def test_an_acknowledgement_is_written_in_order_with_the_saves(sessions, store):
    """None of them is waited for; several in a row are one."""
    keeper, spent = await resumed(sessions)
    store.gate.clear()
    keeper.changed()
    for _ in range(3):
        keeper.acknowledged()
    await asyncio.sleep(0)
    keeper.changed()
    assert store.done == []
    store.gate.set()
    await keeper.close()
    assert store.done == ["write", "settle", "write"]
    with pytest.raises(NotResumable):
        await sessions.resume(keeper.session.id, spent)


async def test_what_failed_is_written_with_the_next_change(sessions, store):
    """A store that was away for the acknowledgement hears of it later; and the save after it is not held up."""
    keeper, spent = await resumed(sessions)
    store.away = 1
    keeper.acknowledged()
    keeper.changed()
    await until(lambda: store.done == ["write"])
    keeper.session.conversation.add(Item.written("user", "Hello?", "q"))
    keeper.changed()
    await keeper.close()
    assert store.done == ["write", "settle", "write"]
    with pytest.raises(NotResumable):
        await sessions.resume(keeper.session.id, spent)


async def test_a_store_that_does_not_answer_ends_no_closing(sessions, store, monkeypatch):
    monkeypatch.setattr(keeping, "CLOSE_SECONDS", 0.01)
    keeper, _ = await resumed(sessions)
    store.gate.clear()
    keeper.acknowledged()
    async with asyncio.timeout(10):
        await keeper.close()
    assert store.done == []
    store.gate.set()
    await until(lambda: store.done == ["settle"])
