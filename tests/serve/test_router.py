"""Which replica gets the next call. The replicas are named by hand; Serve's own machinery is not needed."""

from types import SimpleNamespace

import pytest
from ray.serve._private.request_router.common import ReplicaQueueLengthCache

from omni.serve import replicas, router
from omni.serve.protocol import TurnRequest

SLOTS = 4


class Router(router.LeastBusy):
    def __init__(self, running: dict[str, int | None]) -> None:
        self._replica_queue_len_cache = ReplicaQueueLengthCache()
        stats = {"slots": SLOTS}
        self.candidates = [SimpleNamespace(replica_id=Id(name), routing_stats=stats) for name in running]
        for each in self.candidates:
            if running[each.replica_id.unique_id] is not None:
                self._replica_queue_len_cache.update(each.replica_id, running[each.replica_id.unique_id])

    async def order(self, request_id: str = "r", prefer: str = "") -> list[str]:
        asked = TurnRequest("t", 0, (), prefer=prefer)
        metadata = SimpleNamespace(request_id=request_id)
        request = SimpleNamespace(metadata=metadata, routing_context=SimpleNamespace(), args=[asked])
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


async def test_a_session_stays_with_its_worker():
    """Though others have less to do, while it has a free slot."""
    assert await Router({"a": 0, "b": SLOTS - 1, "c": 1}).order(prefer="b") == ["b", "a", "c"]


@pytest.mark.parametrize("busy", [SLOTS, SLOTS + 3])
async def test_a_session_leaves_a_worker_that_is_full(busy):
    assert await Router({"a": 0, "b": busy}).order(prefer="b") == ["a", "b"]


async def test_a_session_leaves_a_worker_that_is_silent(board):
    board.take("earlier", "b")
    board.suspect("earlier")
    assert await Router({"a": 3, "b": 0}).order(prefer="b") == ["a", "b"]


async def test_a_session_leaves_a_worker_that_is_gone():
    assert await Router({"a": 3, "c": 1}).order(prefer="b") == ["c", "a"]


async def test_a_chunk_prefers_nobody():
    """The vocoders' calls have other arguments."""
    chosen = Router({"a": 3, "b": 0})
    ranks = await chosen.choose_replicas(chosen.candidates, None)
    assert [each.replica_id for rank in ranks for each in rank] == ["b", "a"]
