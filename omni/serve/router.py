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
        ranked = sorted(candidate_replicas, key=self._burden)
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # when all are full, wait before asking again
            if ranked:
                replicas.board.take(pending_request.metadata.request_id, ranked[0].replica_id.unique_id)
        return [[each] for each in ranked]

    def _burden(self, replica: RunningReplica) -> tuple[bool, int]:
        running = self.replica_queue_len_cache.get(replica.replica_id)
        return replicas.board.is_suspect(replica.replica_id.unique_id), running or 0

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        replicas.board.take(pending_request.metadata.request_id, replica_id.unique_id)

    def update_replicas(self, running: list[RunningReplica]) -> None:
        super().update_replicas(running)
        replicas.board.show(self._deployment_id.name, running)
