"""Waiting for other processes, and a port for one of them."""

import socket
import subprocess
import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], process: subprocess.Popen | None = None, seconds: float = 120.0) -> None:
    """Wait for what another process does; fails loudly when it does not, or when this one ends."""
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, "it ended"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
