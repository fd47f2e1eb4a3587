"""Which replica gets the next call. The replicas are named by hand; Serve's own machinery is not needed."""

from types import SimpleNamespace

import pytest
from ray.serve._private.request_router.common import ReplicaQueueLengthCache

from omni.serve import replicas, router


class Router(router.LeastBusy):
    def __init__(self, running: dict[str, int | None]) -> None:
        self._replica_queue_len_cache = ReplicaQueueLengthCache()
        self.candidates = [SimpleNamespace(replica_id=Id(name)) for name in running]
        for each in self.candidates:
            if running[each.replica_id.unique_id] is not None:
                self._replica_queue_len_cache.update(each.replica_id, running[each.replica_id.unique_id])

    async def order(self, request_id: str = "r") -> list[str]:
        request = SimpleNamespace(metadata=SimpleNamespace(request_id=request_id), routing_context=SimpleNamespace())
        ranks = await self.choose_replicas(self.candidates, request)
        return [each.replica_id.unique_id for rank in ranks for each in rank]


class Id(str):
    @property
    def unique_id(self) -> str:
        return str(self)


@pytest.fixture(autouse=True)
def board(monkeypatch) -> replicas.Board:
    board = replicas.Board()
    monkeypatch.setattr(replicas, "board", board)
    return board


async def test_the_least_busy_is_first():
    assert await Router({"a": 3, "b": 0, "c": 1}).order() == ["b", "c", "a"]


async def test_a_suspect_is_last_and_must_be_asked(board):
    """What Serve remembers of its load is forgotten, so that it has to answer before it is given a turn."""
    board.take("earlier", "b")
    assert board.suspect("earlier")
    chosen = Router({"a": 3, "b": 0})
    assert await chosen.order() == ["a", "b"]
    assert chosen.replica_queue_len_cache.get(Id("b")) is None
    assert chosen.replica_queue_len_cache.get(Id("a")) == 3


async def test_a_request_that_only_suspects_could_take_is_not_taken(board):
    """Waiting for a worker is not the fault of one: no attempt is spent on it."""
    board.take("earlier", "a")
    board.suspect("earlier")
    await Router({"a": 0}).order("later")
    assert not board.suspect("later")


async def test_a_suspect_that_accepts_is_none_any_more(board):
    board.take("earlier", "a")
    board.suspect("earlier")
    chosen = Router({"a": 0, "b": 1})
    request = SimpleNamespace(metadata=SimpleNamespace(request_id="r"))
    chosen.on_request_routed(request, Id("a"), None)
    assert await chosen.order() == ["a", "b"]
    assert board.suspect("r"), "and the request is known to be with it"


def test_nobody_is_suspected_for_what_nobody_took(board):
    assert not board.suspect("unknown")
