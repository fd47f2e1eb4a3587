"""Which replica gets the next call: a session's own, else the one with the least to do, a silent one last.

Ray Serve's own router compares two random replicas; ours compares all (there are few), and knows suspects: a stopped
process or a cut network answers nothing for a minute and more before Ray calls it dead. A session stays with the
replica that holds its keys and values, as long as that one has a free slot. Runs in the controller.

Serve pickles this module by value: what all must share is reached through a module of its own.
"""

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from omni.serve import replicas


class LeastBusy(RequestRouter):
    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """All of them, best first. A suspect is asked whether it lives before it is given anything."""
        wanted = _preferred(pending_request)
        ranked = sorted(candidate_replicas, key=lambda each: (not self._keeps(each, wanted), *self._burden(each)))
        for each in ranked:
            if _suspect(each):
                self.replica_queue_len_cache.invalidate_key(each.replica_id)  # so that Serve asks
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # when none will have it, wait before asking again
            if ranked and not _suspect(ranked[0]):
                replicas.board.take(pending_request.metadata.request_id, ranked[0].replica_id.unique_id)
        return [[each] for each in ranked]

    def _keeps(self, replica: RunningReplica, wanted: str) -> bool:
        """It is the session's own, it lives, and it has a slot for the session's next turn."""
        if replica.replica_id.unique_id != wanted or _suspect(replica):
            return False
        slots = (replica.routing_stats or {}).get("slots", 1)
        return (self.replica_queue_len_cache.get(replica.replica_id) or 0) < slots

    def _burden(self, replica: RunningReplica) -> tuple[bool, int]:
        return _suspect(replica), self.replica_queue_len_cache.get(replica.replica_id) or 0

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """The replica has accepted: it lives."""
        replicas.board.clear(replica_id.unique_id)
        replicas.board.take(pending_request.metadata.request_id, replica_id.unique_id)

    def update_replicas(self, running: list[RunningReplica]) -> None:
        super().update_replicas(running)
        replicas.board.show(self._deployment_id.name, running)


def _preferred(pending_request: PendingRequest | None) -> str:
    """The worker that a turn asks for; a chunk asks for none."""
    asked = None if pending_request is None or not pending_request.args else pending_request.args[0]
    return getattr(asked, "prefer", "")


def _suspect(replica: RunningReplica) -> bool:
    return replicas.board.is_suspect(replica.replica_id.unique_id)
