"""`omni up`: controller, workers and page on this machine, each in its own process, until Ctrl-C.

    omni up ─┬─ ray start --head --block ── Serve's controller, ModelWorker ×n, VocoderWorker ×m
             ├─ omni.serve.driver      the controller: HTTP
             └─ omni.serve.gradio_web  the page

This process starts them, gives places of joined machines their workers, restarts a controller or page that ends by
itself, and at the end leaves no process, socket or file behind.
"""

import argparse
import asyncio
import dataclasses
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from omni import checkpoints
from omni.serve import ray_node, stores
from omni.serve.config import DTYPES, MODEL_WEIGHTS, VOCODER_BACKENDS, ConfigError, ServeConfig

START_SECONDS = 300.0  # for Ray, and again for controller and page: a few, unless the machine has much else to do
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WATCH_SECONDS = 1.0
RAY_END_SECONDS = 3.0  # Ray's own processes end in 1.2 to 2.6 s; its workers have nothing left to do
RESTARTS_PER_MINUTE = 5


class LaunchFailed(RuntimeError):
    """The cluster cannot start, or cannot go on; the message says why."""


class Stopped(BaseException):
    """A signal asked for the end."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = {field.name: field.default for field in dataclasses.fields(ServeConfig)}

    def option(group: Any, name: str, kind: Callable, text: str, **more: Any) -> None:
        field = name.replace("-", "_")
        group.add_argument(
            f"--{name}", type=kind, default=default[field], help=f"{text} (default: %(default)s)", **more
        )

    what = parser.add_argument_group("what to serve")
    what.add_argument("--model", default="mini", help="mini, tiny or a checkpoint directory (default: %(default)s)")
    what.add_argument("--vocoder", metavar="DIR", help="vocoder directory (default: the checkpoint's own)")
    option(what, "vocoder-backend", str, "whose CodeHiFiGAN", choices=VOCODER_BACKENDS)
    option(what, "model-dtype", str, "arithmetic of the model", choices=DTYPES)
    option(what, "vocoder-dtype", str, "arithmetic of our vocoder", choices=DTYPES)
    option(
        what,
        "model-weights",
        str,
        "how they are multiplied; 8bit: fp8 on a newer GPU, or int8",
        choices=MODEL_WEIGHTS,
    )

    where = parser.add_argument_group("where")
    option(where, "host", str, "address the controller and the page listen on")
    option(where, "port", int, "port of the controller")
    option(where, "web-port", int, "port of the page")
    where.add_argument("--no-web", action="store_true", help="serve no page")
    where.add_argument(
        "--ray-port", type=int, metavar="PORT", help="port that other machines join at (default: a free one)"
    )
    where.add_argument(
        "--token-file", metavar="FILE", help="the secret joining machines must have (default: a new one)"
    )
    where.add_argument("--log-dir", metavar="DIR", help="keep the logs of controller, page and Ray there")
    where.add_argument("--dashboard", action="store_true", help="run Ray's dashboard too")

    workers = parser.add_argument_group("workers")
    option(workers, "model-workers", int, "model workers on this machine; 0: only where one joins", metavar="N")
    option(workers, "vocoder-workers", int, "vocoder workers on this machine; 0: only where one joins", metavar="M")
    option(workers, "slots", int, "answers a model worker generates at once", metavar="N")
    option(workers, "waiting", int, "turns that may wait at a model worker before it says busy", metavar="N")
    option(workers, "model-threads", int, "CPU threads of a model worker", metavar="N")
    option(workers, "vocoder-threads", int, "CPU threads of a vocoder worker", metavar="N")
    option(workers, "model-gpus", float, "GPUs, or share of one, of a model worker; 0 is the CPU", metavar="SHARE")
    option(workers, "vocoder-gpus", float, "GPUs, or share of one, of a vocoder worker", metavar="SHARE")
    for beside, text in (
        ("alone", "when no answer runs"),
        ("beside", "beside answers"),
        ("dry", "beside one near its end"),
    ):
        text = f"positions of new questions that a step reads {text} (default: by device)"
        workers.add_argument(f"--prefill-{beside}", type=int, metavar="N", help=text)
    option(workers, "vocoder-batch", int, "chunks vocoded together", metavar="N")

    sessions = parser.add_argument_group("sessions")
    sessions.add_argument(
        "--store",
        default=default["store"],
        metavar="WHERE",
        help="a SQLite file, or redis://HOST:PORT/N, to keep them in (default: memory)",
    )
    option(sessions, "session-expiry", float, "how long one can be resumed", metavar="S")
    option(sessions, "max-sessions", int, "sessions kept, in memory or a file", metavar="N")
    option(sessions, "window-turns", int, "turns that an answer can refer to", metavar="N")
    option(sessions, "window-seconds", float, "speech among them", metavar="S")

    limits = parser.add_argument_group("limits")
    option(limits, "max-audio-seconds", float, "longest question", metavar="S")
    option(limits, "max-upload-bytes", int, "largest request", metavar="BYTES")
    option(limits, "max-new-tokens", int, "longest answer, in tokens", metavar="N")
    option(limits, "max-turns", int, "turns at once", metavar="N")
    option(limits, "max-sockets", int, "live conversations at once", metavar="N")
    option(limits, "allowed-origins", str, "pages elsewhere that may hold live conversations", metavar="URL,URL")
    option(limits, "queue-deadline", float, "longest wait for a slot", metavar="S")
    option(limits, "silence-deadline", float, "silence after which a worker is taken for dead", metavar="S")
    option(limits, "progress-deadline", float, "longest wait for a token", metavar="S")
    option(limits, "drain-deadline", float, "how long running turns may go on after Ctrl-C", metavar="S")
    option(limits, "first-chunk", int, "units in an answer's first piece of audio", metavar="N")
    option(limits, "chunk", int, "units in the largest piece", metavar="N")
    option(limits, "chunk-growth", float, "how much larger each piece is than the one before", metavar="FACTOR")


def main(args: argparse.Namespace) -> int:
    logging.getLogger().setLevel(logging.WARNING)
    try:
        check_ports(args)
        check_gpus(args)
        config = make_config(args)
        check_store(config)
    except (ConfigError, checkpoints.UnknownCheckpoint, LaunchFailed) as exc:
        print(f"omni up: {exc}", file=sys.stderr)
        return 2
    return Launch(config, args.ray_port, args.token_file, args.log_dir).run()


def make_config(args: argparse.Namespace) -> ServeConfig:
    """Options → configuration. Makes or fetches the checkpoint, with a progress bar, where it is missing."""
    found = checkpoints.resolve(args.model, args.vocoder)
    fields = {field.name for field in dataclasses.fields(ServeConfig)}
    given = {name: value for name, value in vars(args).items() if name in fields}
    given |= {"model_name": found.name, "model": str(found.model), "vocoder": str(found.vocoder)}
    if args.store and "://" not in args.store:
        given["store"] = str(Path(args.store).absolute())  # the controller may run elsewhere
    if args.no_web:
        given["web_port"] = None
    config = ServeConfig(**given)
    _ = config.adaptors  # a folder of theirs that cannot be served is told now
    return config


def check_ports(args: argparse.Namespace) -> None:
    for option, port in (("--port", args.port), ("--web-port", None if args.no_web else args.web_port)):
        if port is None or not 0 < port < 65536:  # the configuration will say it
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((args.host, port))
            except OSError as exc:
                raise LaunchFailed(
                    f"{args.host}:{port} cannot be had ({exc.strerror}). Choose another {option}."
                ) from exc


def check_gpus(args: argparse.Namespace) -> None:
    wanted = args.model_workers * args.model_gpus + args.vocoder_workers * args.vocoder_gpus
    if wanted > ray_node.num_gpus():
        raise LaunchFailed(f"The workers ask for {wanted:g} GPUs; this machine has {ray_node.num_gpus()}.")


def check_store(config: ServeConfig) -> None:
    """A store that cannot be opened is told now, not by a controller that does not start."""
    try:
        asyncio.run(stores.open_store(config).close())
    except ImportError as exc:
        raise LaunchFailed(f"--store {config.store} needs Redis' client: pip install 'omni[redis]'.") from exc
    except (stores.StoreError, ValueError) as exc:
        raise LaunchFailed(str(exc)) from exc


class Launch:
    """The processes of one cluster, from start to end. `run()` is the whole of it."""

    def __init__(
        self, config: ServeConfig, ray_port: int | None, token_file: str | None, log_dir: str | None = None
    ) -> None:
        self._given = config
        self._ray_port = ray_port or ray_node.free_port()
        self._token_file = token_file
        self._log_dir = log_dir
        self._signals = 0
        self._start = time.monotonic()
        self._restarts: list[float] = []

    def run(self) -> int:
        before = {name: signal.getsignal(name) for name in SIGNALS}
        self._listen()
        try:
            with ExitStack() as stack:
                self._serve(stack)
        except Stopped:
            return 0
        except (LaunchFailed, ray_node.NodeFailed) as exc:
            print(f"omni up: {exc}", file=sys.stderr)
            return 1
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)
        return 0

    # --- start --------------------------------------------------------------------------------------------------------

    def _serve(self, stack: ExitStack) -> None:
        """Start one after another; what was started ends in reverse, whatever happens."""
        state_dir = Path(tempfile.mkdtemp(prefix="omni-"))
        stack.callback(self._clean, state_dir)
        if self._log_dir:
            Path(self._log_dir).mkdir(parents=True, exist_ok=True)
        self._config = self._prepare(state_dir)
        page = self._start_page(stack, state_dir)  # needs nobody to start, and takes its time
        head = self._start_ray(state_dir)
        stack.callback(self._end_ray, head)
        deployments = self._attach(stack, head)
        places = self._wait_for_places(head, deployments)
        self._load(deployments, places)
        children = {"controller": self._start_controller(state_dir)}
        stack.callback(self._drain, children)
        self._wait_for(f"{self._url()}/ready", children["controller"], self._log("controller"))
        if page is not None:
            children["page"] = page
            self._wait_for(self._page_url(), page, self._log("page"))
        self._announce()
        self._watch(head, children, deployments, places, state_dir)

    def _prepare(self, state_dir: Path) -> ServeConfig:
        try:
            token = Path(self._token_file).read_text().strip() if self._token_file else None
        except OSError as exc:
            raise LaunchFailed(f"--token-file {self._token_file} cannot be read: {exc.strerror}.") from exc
        config = dataclasses.replace(
            self._given,
            state_dir=str(state_dir),
            ray_token_file=str(ray_node.write_token(state_dir / "token", token)),
            ray_address=f"{ray_node.own_address()}:{self._ray_port}",
        )
        config.write(state_dir / "config.json")
        os.environ.update(ray_node.environment(state_dir, config.ray_token_file))
        return config

    def _start_ray(self, state_dir: Path) -> ray_node.Child:
        self._say("starting Ray …")
        config = self._config
        own = {"model": config.model_workers, "vocoder": config.vocoder_workers}
        resources = {kind: number for kind, number in own.items() if number}
        return ray_node.start_head(
            state_dir,
            Path(config.ray_token_file),
            self._ray_port,
            resources,
            gpus=ray_node.num_gpus(),
            dashboard=config.dashboard,
        )

    def _attach(self, stack: ExitStack, head: ray_node.Child) -> Any:
        """Become a driver; Ray is imported only now that its environment is set."""
        import ray

        from omni.serve import deployments, ray_cluster

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        stack.callback(ray.shutdown)
        end, log = time.monotonic() + START_SECONDS, self._log("ray")
        while not (ray_node.answers(self._config.ray_address) and ray_cluster.attach(self._config)):
            if head.poll() is not None or time.monotonic() > end:
                raise ray_node.NodeFailed(f"Ray does not start:\n{ray_node.last_words(log)}")
            self._pause(0.05)
        self._listen()  # Ray has taken SIGTERM for itself
        return deployments

    def _wait_for_places(self, head: ray_node.Child, deployments: Any) -> dict[str, int]:
        """Room for workers of each kind: this machine's own, or, where it has none of a kind, what joins."""
        own = {"model": self._config.model_workers, "vocoder": self._config.vocoder_workers}
        if 0 in own.values():
            self._say("waiting for machines to join with places for workers …")
            self._say_how_to_join()
        while any(deployments.places()[kind] < max(1, number) for kind, number in own.items()):
            if head.poll() is not None:
                raise LaunchFailed(f"Ray ended by itself:\n{ray_node.last_words(self._log('ray'))}")
            self._pause(0.2)
        return deployments.places()

    def _load(self, deployments: Any, places: dict[str, int]) -> None:
        """Workers everywhere there is a place for them. Takes as long as the weights take."""
        self._say(
            f"loading {self._config.model_name}: {_several(places['model'], 'model worker')}, "
            f"{_several(places['vocoder'], 'vocoder worker')} …"
        )
        deployments.start(self._config, places)
        try:
            while not deployments.loaded(places):
                self._pause(0.2)
        except deployments.WorkersFailed as exc:
            raise LaunchFailed(f"The workers do not start.\n{exc}") from exc

    def _start_controller(self, state_dir: Path) -> ray_node.Child:
        self._say("starting the controller …")
        command = [sys.executable, "-m", "omni.serve.driver", str(state_dir / "config.json")]
        return self._child(command, "controller")

    def _start_page(self, stack: ExitStack, state_dir: Path) -> ray_node.Child | None:
        if self._config.web_port is None:
            return None
        page = self._run_page(state_dir)
        stack.callback(ray_node.end, page)
        return page

    def _run_page(self, state_dir: Path) -> ray_node.Child:
        command = [sys.executable, "-m", "omni.serve.gradio_web", "--controller", self._url()]
        command += ["--host", self._config.host, "--port", str(self._config.web_port)]
        return self._child(command, "page")

    def _child(self, command: list[str], name: str) -> ray_node.Child:
        environment = ray_node.environment(self._config.state_dir, self._config.ray_token_file)
        return ray_node.run_child(command, self._log(name), environment)

    def _log(self, name: str) -> Path:
        directory = self._config.state_dir if name == "ray" or not self._log_dir else self._log_dir
        return Path(directory) / f"{name}.log"

    def _wait_for(self, url: str, child: ray_node.Child, log: Path) -> None:
        end = time.monotonic() + START_SECONDS
        while not _is_ok(url):
            if child.poll() is not None or time.monotonic() > end:
                raise LaunchFailed(f"{url} does not answer:\n{ray_node.last_words(log)}")
            self._pause(0.05)

    # --- serve --------------------------------------------------------------------------------------------------------

    def _watch(
        self,
        head: ray_node.Child,
        children: dict[str, ray_node.Child],
        deployments: Any,
        places: dict[str, int],
        state: Path,
    ) -> None:
        starters = {"controller": self._start_controller, "page": self._run_page}
        while True:
            self._pause(WATCH_SECONDS)
            if head.poll() is not None:
                raise LaunchFailed(f"Ray ended by itself:\n{ray_node.last_words(self._log('ray'))}")
            for name, child in children.items():
                if child.poll() is not None:
                    self._count_restart(name)
                    children[name] = starters[name](state)
            if (now := deployments.places()) != places and min(now.values()) > 0:
                self._say(f"workers wanted now: {now['model']} model, {now['vocoder']} vocoder")
                deployments.scale(now)
                places = now

    def _count_restart(self, name: str) -> None:
        now = time.monotonic()
        self._restarts = [each for each in self._restarts if now - each < 60] + [now]
        print(f"omni up: the {name} ended by itself; starting it again", file=sys.stderr)
        if len(self._restarts) > RESTARTS_PER_MINUTE:
            raise LaunchFailed(f"The {name} ends again and again:\n{ray_node.last_words(self._log(name))}")

    # --- end ----------------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        for name in SIGNALS:
            signal.signal(name, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1  # no more: an exception from here could come up inside Ray, which takes it amiss

    def _pause(self, seconds: float) -> None:
        """Sleep, unless or until a signal comes."""
        end = time.monotonic() + seconds
        while not self._signals:
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.1))
        raise Stopped

    def _drain(self, children: dict[str, ray_node.Child]) -> None:
        """The page first, so that no new question comes; then the controller, which lets running turns end."""
        self._say("draining; Ctrl-C again to hurry …")
        if "page" in children:
            ray_node.end(children["page"])
        controller, end = children["controller"], time.monotonic() + self._config.drain_deadline + 10
        controller.terminate()
        while controller.poll() is None:
            if self._signals > 1 or time.monotonic() > end:
                controller.kill()
            time.sleep(0.02)

    def _end_ray(self, head: ray_node.Child) -> None:
        """No turn runs any more: what Ray has not ended soon is swept away."""
        ray_node.end(head, RAY_END_SECONDS if self._signals < 2 else 0.0)

    def _clean(self, state_dir: Path) -> None:
        ray_node.sweep(state_dir)
        if self._log_dir:
            for log in (state_dir / "ray.log", *state_dir.glob("ray/session_2*/logs")):
                copy = partial(shutil.copytree, dirs_exist_ok=True) if log.is_dir() else shutil.copy
                copy(log, Path(self._log_dir) / f"ray-{log.name}")  # beside those of an earlier cluster
        shutil.rmtree(state_dir, ignore_errors=True)
        self._say("gone.")

    # --- words --------------------------------------------------------------------------------------------------------

    def _url(self) -> str:
        return f"http://{self._reachable_host()}:{self._config.port}"

    def _page_url(self) -> str:
        return f"http://{self._reachable_host()}:{self._config.web_port}"

    def _reachable_host(self) -> str:
        return "127.0.0.1" if self._config.host in ("0.0.0.0", "::", "") else self._config.host

    def _announce(self) -> None:
        config = self._config
        self._say("ready.")
        if config.web_port is not None:
            print(f"  page        {self._page_url()}")
        print(f"  controller  {self._url()}   (POST /v1/turns, /v1/chat/completions; WS /v1/realtime)")
        self._say_how_to_join()
        print("  Ctrl-C ends it.", flush=True)

    def _say_how_to_join(self) -> None:
        config = self._config
        print(f"  another machine:  omni join {config.ray_address} --roles vocoder --token-file COPY_OF_THIS_FILE")
        print(f"  its token         {config.ray_token_file}", flush=True)

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._start:5.1f} s] {text}", flush=True)


def _several(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _is_ok(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2.0) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False
