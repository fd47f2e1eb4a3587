"""This machine's part of the Ray cluster: one `ray start --block` child process, head or member, and its clean end.

Never `ray stop`: it ends every Ray process of the machine, ours or not. Ending the child with SIGTERM ends its own.
"""

import ctypes
import glob
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

STATE_VARIABLE = "OMNI_STATE_DIR"  # in the environment of every process of one `omni up`, so that none is overlooked
OBJECT_STORE_BYTES = 200 * 2**20  # only answers' larger audio chunks pass through it
END_SECONDS = 5.0  # Ray's own processes are gone after 1.2 to 2.6 s
SWEEP_SECONDS = 60.0  # a machine with much else to do takes its time even to kill; what lives on would write files anew

Child = subprocess.Popen[bytes]


class NodeFailed(RuntimeError):
    """Ray did not start, or ended by itself; the message has its last words."""


def start_head(
    state_dir: Path, token_file: Path, port: int, resources: Mapping[str, float], *, gpus: int, dashboard: bool
) -> Child:
    """The head of a new cluster, reachable at this machine's address and `port`."""
    options = [
        "--head",
        "--no-monitor",  # of an autoscaler that we do not have
        f"--port={port}",
        f"--include-dashboard={str(dashboard).lower()}",
        f"--ray-client-server-port={free_port()}",
    ]
    return _start(state_dir, token_file, resources, gpus, options)


def start_member(
    state_dir: Path, token_file: Path, address: str, resources: Mapping[str, float], *, gpus: int
) -> Child:
    """A further machine of a running cluster."""
    return _start(state_dir, token_file, resources, gpus, [f"--address={address}"])


def environment(state_dir: Path | str, token_file: Path | str) -> dict[str, str]:
    """What every process of the cluster must have in its environment before it imports ray."""
    return {
        "RAY_AUTH_MODE": "token",  # unset, a fresh and a used machine would behave differently
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # Ray's default, 15, makes listeners wait for whatever else the machine does
        "OMP_WAIT_POLICY": "PASSIVE",  # idle arithmetic threads of one worker must not take the cores of another
        STATE_VARIABLE: str(state_dir),
    }


def write_token(path: Path, token: str | None = None) -> Path:
    """The cluster's shared secret, readable by its owner only."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(token or secrets.token_hex(32))
    return path


def run_child(command: list[str], log: Path, extra_environment: Mapping[str, str]) -> Child:
    """A child out of reach of the terminal's Ctrl-C, that gets SIGTERM should this process die."""
    with open(log, "ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **extra_environment},
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )


def end(child: Child, patience: float = END_SECONDS) -> None:
    """SIGTERM, and SIGKILL where that is not enough."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def leftovers(state_dir: Path | str) -> list[int]:
    """Processes other than this one that carry this state directory in their environment."""
    return [pid for pid, marked in _environments() if marked == str(state_dir) and pid != os.getpid()]


def sweep(state_dir: Path | str) -> None:
    """Kill what is left over, and what that may have started meanwhile; returns once it is gone."""
    end = time.monotonic() + SWEEP_SECONDS
    while (found := leftovers(state_dir)) and time.monotonic() < end:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def num_gpus() -> int:
    """NVIDIA devices of this machine."""
    return len(glob.glob("/dev/nvidia[0-9]*"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def own_address() -> str:
    """This machine's address, as others see it. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address reserved for documentation
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"


def answers(address: str) -> bool:
    """Something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, int(port))) == 0


def last_words(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def _start(state_dir: Path, token_file: Path, resources: Mapping[str, float], gpus: int, options: list[str]) -> Child:
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *options]
    command += [
        "--num-cpus=0",  # workers ask for their role; CPUs would only make Ray start processes in advance
        f"--num-gpus={gpus}",
        f"--resources={json.dumps(dict(resources))}",
        f"--temp-dir={state_dir / 'ray'}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        "--include-log-monitor=false",
        f"--dashboard-agent-listen-port={free_port()}",
    ]
    return run_child(command, state_dir / "ray.log", environment(state_dir, token_file))


def _end_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _environments() -> Iterator[tuple[int, str | None]]:
    """Every readable process and the state directory its environment names.

    Ray's agents retitle themselves over a part of their environment, STATE_VARIABLE included; the path of the token,
    which always lies in the state directory, is still there.
    """
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            lines = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        variables = dict(line.split("=", 1) for line in lines if "=" in line)
        token = variables.get("RAY_AUTH_TOKEN_PATH")
        yield int(entry.name), variables.get(STATE_VARIABLE) or (str(Path(token).parent) if token else None)
