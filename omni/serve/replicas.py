"""What this process knows of the workers' replicas: who took which call, who is silent. No Ray calls in here.

Written by the routers (router.py), on Serve's loop; read by `RayCluster`, on the controller's.
"""

import threading
import time
from typing import Any

SUSPECT_SECONDS = 10.0  # how long a silent worker is avoided before it is tried again


class Board:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken_by: dict[str, str] = {}  # request id → replica id, while the request runs
        self._suspects: dict[str, float] = {}  # replica id → until when
        self._replicas: dict[str, dict[str, Any]] = {}  # deployment → its replicas

    def show(self, deployment: str, replicas: list[Any]) -> None:
        with self._lock:
            self._replicas[deployment] = {each.replica_id.unique_id: each for each in replicas}

    def replicas(self, deployment: str) -> dict[str, Any]:
        with self._lock:
            return dict(self._replicas.get(deployment, {}))

    def take(self, request_id: str, replica_id: str) -> None:
        with self._lock:
            self._taken_by[request_id] = replica_id

    def forget(self, request_id: str) -> None:
        with self._lock:
            self._taken_by.pop(request_id, None)

    def suspect(self, request_id: str) -> bool:
        """Avoid the replica that took this request; False if none did."""
        with self._lock:
            replica = self._taken_by.get(request_id)
            if replica is not None:
                self._suspects[replica] = time.monotonic() + SUSPECT_SECONDS
            return replica is not None

    def is_suspect(self, replica_id: str) -> bool:
        with self._lock:
            return self._suspects.get(replica_id, 0.0) > time.monotonic()

    def clear(self, replica_id: str) -> None:
        """It has answered."""
        with self._lock:
            self._suspects.pop(replica_id, None)


board = Board()  # one per process: Serve makes the routers, and tells them nothing of ours
