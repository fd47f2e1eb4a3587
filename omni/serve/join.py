"""`omni join ADDRESS`: give a running cluster this machine's places for workers, until Ctrl-C.

`omni up` sees the new places and puts workers there; when this ends, they go, and their turns go on elsewhere.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from omni.serve import ray_node

ROLES = ("model", "vocoder")
TOKEN_VARIABLE = "OMNI_TOKEN"
JOIN_SECONDS = 60.0


class Stopped(BaseException):
    """A signal asked for the end."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="ADDRESS", help="HOST:PORT that `omni up` prints")
    parser.add_argument(
        "--roles", choices=ROLES, action="append", required=True, help="kind of workers; may be repeated"
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="workers of each kind (default: %(default)s)"
    )
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs to offer (default: all of this machine)")
    secret = parser.add_mutually_exclusive_group()
    secret.add_argument("--token-file", metavar="FILE", help="a copy of the file that `omni up` names")
    secret.add_argument("--token", help=f"its content; others on this machine can see it (or in ${TOKEN_VARIABLE})")


def main(args: argparse.Namespace) -> int:
    try:
        token = read_token(args)
        check(args)
    except ValueError as exc:
        print(f"omni join: {exc}", file=sys.stderr)
        return 2
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, _stop)
    state_dir = Path(tempfile.mkdtemp(prefix="omni-"))
    try:
        return join(args, token, state_dir)
    except Stopped:
        return 0
    finally:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_IGN)  # what follows is short, and must not be left half done
        ray_node.sweep(state_dir)
        shutil.rmtree(state_dir, ignore_errors=True)


def join(args: argparse.Namespace, token: str, state_dir: Path) -> int:
    """Run this machine's Ray node until it ends, or we are told to."""
    token_file = ray_node.write_token(state_dir / "token", token)
    resources = {role: args.workers for role in args.roles}
    gpus = ray_node.num_gpus() if args.gpus is None else args.gpus
    print(f"joining {args.address} with places for {args.workers} {' and '.join(args.roles)} worker(s) …", flush=True)
    node = ray_node.start_member(state_dir, token_file, args.address, resources, gpus=gpus)
    log = state_dir / "ray.log"
    try:
        end, joined = time.monotonic() + JOIN_SECONDS, False
        while node.poll() is None:
            if not joined and "Ray runtime started" in ray_node.last_words(log, 100):
                joined = True
                print("joined. Ctrl-C leaves.", flush=True)
            if not joined and time.monotonic() > end:
                break
            time.sleep(0.2)
        print(
            f"omni join: this machine is not part of the cluster (any more):\n{ray_node.last_words(log)}",
            file=sys.stderr,
        )
        return 1
    finally:
        ray_node.end(node)


def read_token(args: argparse.Namespace) -> str:
    if args.token_file:
        try:
            return Path(args.token_file).read_text().strip()
        except OSError as exc:
            raise ValueError(f"{args.token_file} cannot be read: {exc.strerror}.") from exc
    token = args.token or os.environ.get(TOKEN_VARIABLE)
    if not token:
        raise ValueError(f"no token: give --token-file, --token or ${TOKEN_VARIABLE}; `omni up` names its file.")
    return token


def check(args: argparse.Namespace) -> None:
    host, _, port = args.address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"{args.address!r} is not HOST:PORT.")
    if args.workers < 1:
        raise ValueError(f"--workers is {args.workers}; it must be at least 1.")


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped
