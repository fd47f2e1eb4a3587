"""The model worker: a Ray Serve deployment that answers turns with text and units, several at a time.

One thread computes, step after step for all running answers; the replica's event loop only carries messages, so that
heartbeats and health checks pass while the model thinks. The engine is behind `Engine`; a turn's rules are not here.
"""

import asyncio
import logging
import os
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from omni.serve import errors
from omni.serve.config import ServeConfig
from omni.serve.protocol import Tokens, TurnRequest

logger = logging.getLogger(__name__)

HEARTBEATS_PER_SILENCE = 4  # a worker that lives speaks four times before it is called silent
RETRY_AFTER = 1.0


@dataclass(frozen=True)
class Output:
    """What one step gave one turn. `error` ends it."""

    turn_id: str
    epoch: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    units: tuple[int, ...] = ()
    finish: str | None = None
    timings: dict[str, float] = field(default_factory=dict)
    error: Exception | None = None


class Engine(Protocol):
    """What the worker's thread asks of an engine; called from that thread only."""

    def add(self, request: TurnRequest) -> None: ...

    def abort(self, turn_id: str, epoch: int) -> None: ...

    def step(self) -> Iterable[Output]:
        """One step for all running turns (or a prefill). Empty only if nothing runs or waits."""
        ...

    @property
    def running(self) -> int: ...

    @property
    def waiting(self) -> int: ...


class Mailbox:
    """One turn's outputs, from the computing thread to its stream."""

    def __init__(self) -> None:
        self.outputs: asyncio.Queue[Output] = asyncio.Queue()
        self.started = False

    def put(self, output: Output) -> None:
        self.started = True
        self.outputs.put_nowait(output)

    async def next(self, patience: float) -> list[Output]:
        """All that has arrived; after `patience` seconds without anything, nothing."""
        try:
            first = await asyncio.wait_for(self.outputs.get(), patience)
        except TimeoutError:
            return []
        return [first] + [self.outputs.get_nowait() for _ in range(self.outputs.qsize())]


class Thinking:
    """The computing thread: takes additions and aborts between steps, hands outputs to the event loop."""

    def __init__(self, engine: Engine, deliver: Callable[[list[Output]], None]) -> None:
        self._engine = engine
        self._deliver = deliver
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def do(self, command: Callable[[], None]) -> None:
        """Between two steps, in the computing thread."""
        self._commands.put(command)

    def stop(self) -> None:
        self._commands.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._obey():
                outputs = list(self._engine.step())
                if outputs:
                    self._deliver(outputs)
        except BaseException as exc:
            logger.exception("the computing thread ended")
            self.failure = exc

    def _obey(self) -> bool:
        """Do what was asked; wait for it if there is nothing to compute. False: stop."""
        idle = self._engine.running == 0 and self._engine.waiting == 0
        while True:
            try:
                command = self._commands.get(block=idle)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            idle = False


class ModelWorker:
    """Deployed by launch.py. Loads the checkpoint when constructed: a replica is ready once it can answer."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._id = _replica_id()
        self._answered = 0
        self._mailboxes: dict[tuple[str, int], Mailbox] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._engine = _load(config)
        self._thinking = Thinking(self._engine, self._deliver)

    async def generate(self, request: TurnRequest) -> AsyncIterator[Tokens]:
        """The answer in groups of tokens; the first message says who answers. Cancelling frees its slot in a step."""
        if len(self._mailboxes) >= self._config.slots + self._config.waiting:
            raise errors.Busy("Every slot of this worker is taken, and its queue is full.", retry_after=RETRY_AFTER)
        self._loop = asyncio.get_running_loop()
        key, mailbox = (request.turn_id, request.epoch), Mailbox()
        self._mailboxes[key] = mailbox
        self._thinking.do(lambda: self._engine.add(request))
        finished = False
        try:
            yield self._heartbeat(request, 0, mailbox)
            number = 1
            while not finished:
                outputs = await mailbox.next(self._config.silence_deadline / HEARTBEATS_PER_SILENCE)
                if not outputs:
                    self._check_thread()
                    yield self._heartbeat(request, number, mailbox)
                else:
                    finished = outputs[-1].finish is not None or outputs[-1].error is not None
                    yield _message(request, number, outputs)
                number += 1
            self._answered += 1
        finally:
            self._mailboxes.pop(key, None)
            if not finished:
                self._thinking.do(lambda: self._engine.abort(*key))

    async def load(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "slots": self._config.slots,
            "running": self._engine.running,
            "waiting": self._engine.waiting,
            "answered": self._answered,
        }

    async def record_routing_stats(self) -> dict[str, Any]:
        """Serve collects this from every replica and gives it to the controllers' routers."""
        return await self.load()

    def check_health(self) -> None:
        self._check_thread()

    def _check_thread(self) -> None:
        if not self._thinking.alive:
            raise errors.WorkerLost(f"The computing thread ended: {self._thinking.failure!r}.")

    def _heartbeat(self, request: TurnRequest, number: int, mailbox: Mailbox) -> Tokens:
        return Tokens(request.epoch, number, (), "", (), waiting=not mailbox.started, worker=self._id)

    def _deliver(self, outputs: list[Output]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._sort, outputs)

    def _sort(self, outputs: list[Output]) -> None:
        for output in outputs:
            mailbox = self._mailboxes.get((output.turn_id, output.epoch))
            if mailbox is not None:  # else its turn has been cancelled
                mailbox.put(output)


def _message(request: TurnRequest, number: int, outputs: list[Output]) -> Tokens:
    """Outputs that waited together go together."""
    last = outputs[-1]
    if last.error is not None:
        raise last.error
    timings: dict[str, float] = {}
    for output in outputs:
        timings |= output.timings
    return Tokens(
        request.epoch,
        number,
        tuple(token for output in outputs for token in output.token_ids),
        "".join(output.text for output in outputs),
        tuple(unit for output in outputs for unit in output.units),
        last.finish,
        timings,
    )


def _replica_id() -> str:
    from ray import serve

    return serve.get_replica_context().replica_id.unique_id


def _load(config: ServeConfig) -> Engine:
    """torch comes in here, in the replica only: the process that deploys stays light."""
    from omni.serve.thinking import load

    return load(config)
