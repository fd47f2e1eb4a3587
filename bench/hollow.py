"""A model and a vocoder that compute nothing, for workers that are otherwise the real ones: what is left is the way.

What they send says when it left, so that the other end knows how long it was under way: `time.monotonic()` is one
clock for all processes of a machine.
"""

import os
import shutil
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from omni import checkpoints
from omni.engine import sequence as engine
from omni.serve import ray_node
from omni.serve.cluster import Cluster
from omni.serve.config import ServeConfig
from omni.vocoder.streaming import Chunk, ChunkReply

UNITS_PER_TOKEN = 11  # what the mini checkpoint's unit decoder gives
DURATIONS = (1, 2)  # frames of a unit, in turn
FRAME_BYTES = 2 * 320
START_SECONDS = 300.0  # for Ray and the workers: a few, unless the machine has much else to do
STAMP = struct.Struct("<d")


class HollowEngine:
    """A token for each of the oldest `slots` turns every `step_seconds`; the others wait."""

    def __init__(self, step_seconds: float, slots: int) -> None:
        self._step_seconds, self._slots = step_seconds, slots
        self._due = 0.0
        self._lock = threading.Lock()
        self._something = threading.Event()
        self._turns: dict[str, tuple[engine.Sequence, dict[str, float]]] = {}

    @property
    def running(self) -> int:
        return min(len(self._turns), self._slots)

    @property
    def waiting(self) -> int:
        return max(0, len(self._turns) - self._slots)

    def add(
        self, turn_id: str, conversation: Any, sampling: Any, forced: Sequence[int], received_units: int, adaptor: str
    ) -> engine.Sequence:
        told = tuple(conversation), sampling, tuple(forced), received_units
        added = engine.Sequence(turn_id, *told, adaptor=adaptor)
        added.prompt_length = 1
        with self._lock:
            self._turns[turn_id] = added, {"arrived": time.monotonic()}
        self._something.set()
        return added

    def abort(self, turn_id: str) -> None:
        with self._lock:
            self._turns.pop(turn_id, None)

    def wait(self, seconds: float) -> None:
        if self._something.wait(seconds):
            time.sleep(max(0.0, self._due - time.monotonic()))  # the step that others would compute in

    def step(self) -> list[engine.Output]:
        self._due = time.monotonic() + self._step_seconds
        with self._lock:
            rows = list(self._turns.values())[: self._slots]
            outputs = [self._token(*turn, len(rows)) for turn in rows]
            for output in outputs:
                if output.finish:
                    del self._turns[output.turn_id]
            if not self._turns:
                self._something.clear()
        return outputs

    def wake(self) -> None:
        self._something.set()

    def _token(self, sequence: engine.Sequence, timings: dict[str, float], rows: int) -> engine.Output:
        sequence.state = engine.State.RUNNING
        sequence.tokens.append(1)
        sequence.num_units += UNITS_PER_TOKEN
        finish = "length" if len(sequence.tokens) == sequence.limit else None
        units = tuple(range(UNITS_PER_TOKEN))
        ends = ((sequence.num_units, 5 * len(sequence.tokens)),)
        left = timings | {"left": time.monotonic(), "at_once": rows}
        return engine.Output(sequence.turn_id, (1,), " word", units, finish, timings=left, ends=ends)


class HollowModel:
    """`load` of a model worker."""

    def __init__(self, step_seconds: float) -> None:
        self._step_seconds = step_seconds

    def __call__(self, config: ServeConfig) -> HollowEngine:
        return HollowEngine(self._step_seconds, config.slots)


def hollow_vocoder(config: ServeConfig) -> Callable[[Sequence[Chunk]], list[ChunkReply]]:
    """`load` of a vocoder worker."""
    return lambda chunks: [silence(chunk) for chunk in chunks]


def silence(chunk: Chunk) -> ChunkReply:
    """As long as speech would be, with the time in its first samples."""
    rest = range(len(chunk.durations), len(chunk.units))
    durations = chunk.durations + tuple(DURATIONS[i % len(DURATIONS)] for i in rest)
    frames = chunk.certain_frames(durations) - chunk.skip_frames
    sound = STAMP.pack(time.monotonic()) + bytes(frames * FRAME_BYTES - STAMP.size) if frames else b""
    return ChunkReply(chunk.number, sound, durations)


def stamp(reply: ChunkReply) -> float | None:
    """When it left; None for one without sound."""
    return STAMP.unpack_from(reply.pcm)[0] if reply.pcm else None


# --- its cluster --------------------------------------------------------------------------------------------------


def make_config(model_workers: int, slots: int) -> ServeConfig:
    """The defaults of `omni up`; of the tiny checkpoint only the vocoder's shape is read."""
    tiny = checkpoints.resolve("tiny")
    return ServeConfig(tiny.name, str(tiny.model), str(tiny.vocoder), model_workers=model_workers, slots=slots)


@contextmanager
def running(config: ServeConfig, step_seconds: float) -> Iterator[Cluster]:
    """Ray and the workers, as `omni up` starts them, and a driver's client to them. Leaves nothing."""
    with ExitStack() as stack:
        state_dir = Path(tempfile.mkdtemp(prefix="omni-"))
        stack.callback(shutil.rmtree, state_dir, ignore_errors=True)
        stack.callback(ray_node.sweep, state_dir)
        port, token = ray_node.free_port(), ray_node.write_token(state_dir / "token")
        config = replace(
            config,
            state_dir=str(state_dir),
            ray_token_file=str(token),
            ray_address=f"{ray_node.own_address()}:{port}",
        )
        os.environ.update(ray_node.environment(state_dir, token))
        places = {"model": config.model_workers, "vocoder": config.vocoder_workers}
        head = ray_node.start_head(state_dir, token, port, places, gpus=0, dashboard=False)
        stack.callback(ray_node.end, head)
        yield _deploy(stack, config, head, step_seconds)


def _deploy(stack: ExitStack, config: ServeConfig, head: ray_node.Child, step_seconds: float) -> Cluster:
    import ray  # its environment is set now

    from omni.serve import deployments, ray_cluster

    end, log = time.monotonic() + START_SECONDS, Path(config.state_dir) / "ray.log"
    stack.callback(ray.shutdown)

    def wait_for(done: Any, what: str) -> None:
        while not done():
            if head.poll() is not None or time.monotonic() > end:
                raise ray_node.NodeFailed(f"{what} does not start:\n{ray_node.last_words(log)}")
            time.sleep(0.1)

    wait_for(lambda: ray_node.answers(config.ray_address) and ray_cluster.attach(config), "Ray")
    numbers: Mapping[Any, int] = {"model": config.model_workers, "vocoder": config.vocoder_workers}
    wait_for(lambda: deployments.places() == numbers, "Ray")
    loads: Mapping[Any, Any] = {"model": HollowModel(step_seconds), "vocoder": hollow_vocoder}
    deployments.start(config, numbers, loads)
    wait_for(lambda: deployments.loaded(numbers), "A worker")
    return ray_cluster.RayCluster(config)
