"""`omni up` as a child process of the tests: started, asked about its workers, ended, and looked for afterwards."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from waiting import free_port, wait_until

from omni.serve import ray_node

START_SECONDS = 400  # for two cores that have much else to do
END_SECONDS = 60


@dataclass
class Up:
    """A running `omni up`."""

    process: subprocess.Popen
    url: str
    page: str
    state_dir: Path
    log: Path

    @property
    def store(self) -> Path:
        """Where it keeps sessions."""
        return self.log.parent / "sessions.db"

    def workers(self, kind: str) -> list[dict]:
        """Those that are listed as ready and alive: a killed one is listed until its loss has been noticed."""
        with urllib.request.urlopen(f"{self.url}/v1/cluster", timeout=10) as response:
            workers = json.load(response)["workers"]
        ready = [each for each in workers if each["kind"] == kind and each["state"] == "ready" and "pid" in each]
        return [each for each in ready if Path(f"/proc/{each['pid']}/stat").exists()]

    def both_there(self, kind: str) -> None:
        wait_until(lambda: len(self.workers(kind)) == 2)

    def processes(self) -> list[int]:
        return ray_node.leftovers(self.state_dir)


def start_up(home: Path, *options: str) -> Up:
    """`omni up` with these further options, once it is ready."""
    port, web_port = free_port(), free_port()
    command = [sys.executable, "-m", "omni.cli", "up", "--model", "tiny", "--model-workers", "2"]
    # float32: only there does an answer that goes on elsewhere equal the undisturbed one whatever runs beside it
    command += ["--model-dtype", "float32", "--vocoder-dtype", "float32"]
    command += ["--vocoder-workers", "2", "--port", str(port), "--web-port", str(web_port)]
    command += ["--store", str(home / "sessions.db"), *options]
    log = home / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C on the tests ends it through the fixture
        )
    try:
        wait_for(process, log)
    except BaseException:
        process.send_signal(signal.SIGTERM)
        process.wait(END_SECONDS)
        raise
    token = next(line.split()[-1] for line in log.read_text().splitlines() if line.split()[:2] == ["its", "token"])
    return Up(process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{web_port}", Path(token).parent, log)


def wait_for(process: subprocess.Popen, log: Path) -> None:
    """Until the last line of its start, which names Ctrl-C."""
    end = time.monotonic() + START_SECONDS
    while "Ctrl-C ends it" not in log.read_text():
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
            raise AssertionError(f"omni up ended:\n{log.read_text()}")
        assert time.monotonic() < end, f"omni up does not get ready:\n{log.read_text()}"


def end_up(running: Up) -> int:
    running.process.send_signal(signal.SIGINT)
    return running.process.wait(END_SECONDS)


def assert_gone(running: Up) -> None:
    assert running.processes() == []
    assert not running.state_dir.exists()
    for url in (running.url, running.page):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) != 0, f"{url} still answers"
