"""The model worker: a Ray Serve deployment that answers turns with text and units, several at a time.

One thread computes, step after step for all running answers (thinking.py); the replica's event loop only carries
messages, so that heartbeats and health checks pass while the model thinks. What a turn is, turn.py knows.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from omni.serve import errors
from omni.serve.config import ServeConfig
from omni.serve.protocol import ReadRequest, Tokens, TurnRequest

HEARTBEATS_PER_SILENCE = 4  # a worker that lives speaks four times before it is called silent
RETRY_AFTER = 1.0


class ModelWorker:
    """Deployed by deployments.py. Loads the checkpoint when constructed: a replica is ready once it can answer."""

    def __init__(
        self, config: ServeConfig, worker: str | None = None, load: Callable[[ServeConfig], Any] | None = None
    ) -> None:
        """`load` gives the engine; by default the checkpoint's."""
        from omni.serve import thinking  # torch comes in here: the process that deploys stays light

        self._config = config
        self._worker = worker or _replica_id()
        self._answered = self._read = 0
        self._mailboxes: dict[str, asyncio.Queue] = {}  # the engine's name for a turn → its outputs
        self._loop: asyncio.AbstractEventLoop | None = None
        self._as_wire_error, self._key = thinking.as_wire_error, thinking.key
        self._thinking = thinking.Thinking((load or thinking.load)(config), self._deliver)

    async def generate(self, request: TurnRequest) -> AsyncIterator[Tokens]:
        """The answer in groups of tokens; the first message says who answers. Cancelling frees its slot in a step."""
        if len(self._mailboxes) >= self._config.slots + self._config.waiting:
            raise errors.Busy("Every slot of this worker is taken, and its queue is full.", retry_after=RETRY_AFTER)
        self._loop = asyncio.get_running_loop()
        name, mailbox = self._key(request), asyncio.Queue[Any]()
        self._mailboxes[name] = mailbox
        try:
            sequence = self._thinking.add(request)
            number, finished = 0, False
            yield self._heartbeat(request, number, sequence)
            while not finished:
                number += 1
                outputs = await _collect(mailbox, self._config.silence_deadline / HEARTBEATS_PER_SILENCE)
                if outputs:
                    yield self._tokens(request, number, outputs, sequence)
                    finished = outputs[-1].finish is not None
                else:
                    self.check_health()
                    yield self._heartbeat(request, number, sequence)
            self._answered += 1
        finally:
            self._thinking.abort(name)  # no harm where it has ended
            del self._mailboxes[name]

    async def read(self, request: ReadRequest) -> str:
        """Read ahead; says who did, so that the turn comes here too. A favour: no place is kept for it."""
        if len(self._mailboxes) >= self._config.slots:
            raise errors.Busy("Every slot of this worker is taken.", retry_after=RETRY_AFTER)
        self._loop = asyncio.get_running_loop()
        mailbox = self._mailboxes[request.turn_id] = asyncio.Queue[Any]()
        try:
            self._thinking.read(request)
            outputs = await _collect(mailbox, self._config.queue_deadline)
            if not outputs:
                raise errors.Busy("No slot was free to read ahead in.", retry_after=RETRY_AFTER)
            if outputs[0].error is not None:
                raise self._as_wire_error(outputs[0].error)
            self._read += 1
            return self._worker
        finally:
            self._thinking.abort(request.turn_id)
            del self._mailboxes[request.turn_id]

    async def record_routing_stats(self) -> dict[str, Any]:
        """Serve collects this from every replica and shows it to the controllers' routers."""
        return self.load()

    def load(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "slots": self._config.slots,
            "running": self._thinking.engine.running,
            "waiting": self._thinking.engine.waiting,
            "answered": self._answered,
            "read": self._read,
        }

    def check_health(self) -> None:
        if not self._thinking.alive:
            raise errors.WorkerLost(f"The computing thread ended: {self._thinking.failure!r}.")

    def stop(self) -> None:
        self._thinking.stop()

    def _heartbeat(self, request: TurnRequest, number: int, sequence: Any) -> Tokens:
        waiting = sequence.state.value == "waiting"
        return Tokens(request.epoch, number, (), "", (), waiting=waiting, worker=self._worker)

    def _tokens(self, request: TurnRequest, number: int, outputs: Sequence[Any], sequence: Any) -> Tokens:
        """Outputs that waited together go together."""
        if outputs[-1].error is not None:
            raise self._as_wire_error(outputs[-1].error)
        timings: dict[str, float] = {}
        for output in outputs:
            timings |= output.timings
        return Tokens(
            request.epoch,
            number,
            tuple(token for output in outputs for token in output.token_ids),
            "".join(output.text for output in outputs),
            tuple(unit for output in outputs for unit in output.units),
            outputs[-1].finish,
            timings,
            num_prompt_tokens=sequence.prompt_length,
            num_cached_tokens=min(sequence.num_reused, sequence.prompt_length),  # forced tokens may be held too
            ends=tuple(end for output in outputs for end in output.ends),
        )

    def _deliver(self, outputs: list) -> None:
        """In the computing thread: hand over, and go on computing."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._sort, outputs)
        except RuntimeError:
            if not self._loop.is_closed():  # with the loop those who waited are gone, too
                raise

    def _sort(self, outputs: list) -> None:
        for output in outputs:
            mailbox = self._mailboxes.get(output.turn_id)
            if mailbox is not None:  # else it has been cancelled meanwhile
                mailbox.put_nowait(output)


async def _collect(mailbox: asyncio.Queue, patience: float) -> list[Any]:
    """All that has arrived; after `patience` seconds without anything, nothing."""
    try:
        first = await asyncio.wait_for(mailbox.get(), patience)
    except TimeoutError:
        return []
    return [first] + [mailbox.get_nowait() for _ in range(mailbox.qsize())]


def _replica_id() -> str:
    from ray import serve

    return serve.get_replica_context().replica_id.unique_id
