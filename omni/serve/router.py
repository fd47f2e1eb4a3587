"""Which replica gets the next call: the one with the least to do, and a silent one last. Runs in the controller.

Ray Serve's own router compares two random replicas; ours compares all (there are few), and knows suspects: a stopped
process or a cut network answers nothing for a minute and more before Ray calls it dead.

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
        ranked = sorted(candidate_replicas, key=self._burden)
        for each in ranked:
            if _suspect(each):
                self.replica_queue_len_cache.invalidate_key(each.replica_id)  # so that Serve asks
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # when none will have it, wait before asking again
            if ranked and not _suspect(ranked[0]):
                replicas.board.take(pending_request.metadata.request_id, ranked[0].replica_id.unique_id)
        return [[each] for each in ranked]

    def _burden(self, replica: RunningReplica) -> tuple[bool, int]:
        return _suspect(replica), self.replica_queue_len_cache.get(replica.replica_id) or 0

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """The replica has accepted: it lives."""
        replicas.board.clear(replica_id.unique_id)
        replicas.board.take(pending_request.metadata.request_id, replica_id.unique_id)

    def update_replicas(self, running: list[RunningReplica]) -> None:
        super().update_replicas(running)
        replicas.board.show(self._deployment_id.name, running)


def _suspect(replica: RunningReplica) -> bool:
    return replicas.board.is_suspect(replica.replica_id.unique_id)
