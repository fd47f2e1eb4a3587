"""What a socket costs on which nobody speaks: the controller in its own process, its memory as the kernel counts it."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
import websockets

SOCKETS = 500
WARM = 20  # sockets before the first measurement: what is made once is not theirs
MOST = 100_000  # bytes a socket

SERVER = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fake_cluster import FakeCluster, config, over_tcp
from omni.serve.controller import make_app

async def main():
    async with over_tcp(make_app(config(Path(sys.argv[2])), FakeCluster())) as url:
        print(url, flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


def resident(pid: int) -> int:
    """Bytes of a process' memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
async def test_five_hundred_idle_sockets(tmp_path):
    """Under 100 kB each: ears, buffers and tasks are made when somebody speaks."""
    command = [sys.executable, "-c", SERVER, str(Path(__file__).parent), str(tmp_path)]
    server = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin is not None and server.stdout is not None
    sockets: list[websockets.ClientConnection] = []
    try:
        url = (await server.stdout.readline()).decode().strip().replace("http", "ws") + "/v1/realtime"

        async def connect() -> None:
            sockets.append(await websockets.connect(url, compression=None, open_timeout=60))
            await sockets[-1].recv()  # session.created

        for _ in range(WARM):
            await connect()
        before = resident(server.pid)
        for _ in range(SOCKETS):
            await connect()
        each = (resident(server.pid) - before) / SOCKETS
        print(f"{each / 1000:.1f} kB an idle socket")
        assert 0 < each < MOST
    finally:
        await asyncio.gather(*(socket.close() for socket in sockets))
        server.stdin.close()
        await asyncio.wait_for(server.wait(), 30)
