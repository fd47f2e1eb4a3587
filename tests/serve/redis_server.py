"""A Redis server of the tests' own, where this machine has one; a test that needs it is skipped elsewhere."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from waiting import free_port, wait_until

PASSWORD = "secret"
SERVER = shutil.which("redis-check-rdb")  # Debian's redis-tools: the server itself, which goes by its name


@contextmanager
def redis_server(directory: Path) -> Iterator[str]:
    """Its URL, without the password."""
    if SERVER is None:
        pytest.skip("there is no Redis server here: apt-get install redis-tools")
    port = free_port()
    words = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)]
    server = subprocess.Popen([*words, "--requirepass", PASSWORD], executable=SERVER, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: _listens(port), server, seconds=20)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(10)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
