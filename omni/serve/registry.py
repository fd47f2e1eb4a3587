"""The turns of one controller, from the first byte of a request to the last of its answer.

    live = registry.arrive("turns", asker)         # counted as started; an HTTP exchange, or a socket's response
    registry.admit()                               # Busy, Draining
    async for event in live.answer(messages, sampling): ...
    registry.leave(live)                           # counted as ok, cancelled, rejected or failed; one line in the log

A turn ends for one reason, whoever gives it; here its worker is told, its place is given back and the line is written.
"""

import asyncio
import logging
import math
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from omni.audio.wav import SAMPLE_RATE
from omni.serve import turn
from omni.serve.affinity import Affinity
from omni.serve.asker import Asker
from omni.serve.cluster import Cluster
from omni.serve.config import ServeConfig
from omni.serve.errors import Busy, Cancelled, Draining, Internal
from omni.serve.metrics import Metrics
from omni.serve.protocol import AudioDelta, Done, Failed, Message, Sampling, TextDelta

logger = logging.getLogger(__name__)
SAMPLE_BYTES = 2  # int16
RETRY_SECONDS = 1.0  # when a place is likely to be free again


class TurnFailed(Exception):
    """A turn ended with this event."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


def failure(exc: BaseException) -> Failed:
    """Any exception → what the client is told."""
    return exc.failed if isinstance(exc, TurnFailed) else turn.failed(exc)


class LiveTurn:
    """One request for an answer."""

    def __init__(self, registry: "Registry", surface: str, asker: Asker) -> None:
        self.turn_id = uuid.uuid4().hex
        self.asker = asker
        self.turn: turn.Turn | None = None  # once it is admitted
        self.failed: Failed | None = None
        self.done: Done | None = None
        self.sampling = Sampling()
        self.audio_in = self.audio_out = 0.0  # seconds
        self.milliseconds: dict[str, float] = {}  # since the question was complete
        self.arrived = self.asked = registry.clock()
        self.surface = surface
        self._registry = registry
        self._uploading = 0

    def complete(self) -> None:
        """The question is complete: from now on the client waits. What came before, it had to wait no time for."""
        self.asked = self._registry.clock()
        self.milliseconds = dict.fromkeys(self.milliseconds, 0.0)

    async def answer(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        *,
        audio: bool = True,
        config: ServeConfig | None = None,
        prefer: str = "",
        session: str = "",
        adaptor: str = "",
    ) -> AsyncGenerator[TextDelta | AudioDelta | Done, None]:
        """The turn's events; the last one is Done. Anything else that ends it is raised.

        `config` is the registry's, changed for this answer: other chunks, other deadlines. `prefer`
        is the worker that answered the session before; where that is not known, `session` is the client's name for it.
        `adaptor` hears the questions, the checkpoint's own unless named.
        """
        registry = self._registry
        registry.admit()  # much may have changed while the question was on its way
        registry.answering.add(self.turn_id)
        self.forget_upload()
        self.sampling = sampling
        self.audio_in = sum(len(each.pcm16 or b"") for each in messages) / SAMPLE_BYTES / SAMPLE_RATE
        self.turn = turn.Turn(
            registry.cluster,
            config or registry.config,
            messages,
            sampling,
            audio=audio,
            turn_id=self.turn_id,
            prefer=prefer or registry.affinity.find(session),
            adaptor=adaptor,
        )
        events = self.turn.run()
        try:
            while self.done is None:
                event = await self.asker.unless_gone(anext(events, None), registry.guard_seconds)
                if event is None:
                    raise Internal("The turn ended without saying how.")
                if isinstance(event, Failed):
                    raise TurnFailed(event)
                self._note(event)
                yield event
        finally:
            registry.affinity.note(session, self.turn.ledger.worker)
            with suppress(RuntimeError):  # it still runs: cancelled, but held up by a worker that does not answer
                await events.aclose()

    def _note(self, event: TextDelta | AudioDelta | Done) -> None:
        name = {TextDelta: "first_text", AudioDelta: "first_audio", Done: "total"}[type(event)]
        self.milliseconds.setdefault(name, 1000 * (self._registry.clock() - self.asked))
        if isinstance(event, AudioDelta):
            self.audio_out += len(event.pcm16) / SAMPLE_BYTES / SAMPLE_RATE
        elif isinstance(event, Done):
            self.done = event

    def count_upload(self, num_bytes: int) -> None:
        self._uploading += num_bytes
        self._registry.uploading += num_bytes
        if self._registry.uploading > self._registry.config.max_uploading_bytes:
            raise Busy("Too many bytes are being uploaded at once.", retry_after=RETRY_SECONDS)

    def forget_upload(self) -> None:
        """The body was decoded, or dropped."""
        self._registry.uploading -= self._uploading
        self._uploading = 0

    @property
    def outcome(self) -> str:
        if self.failed is None:
            return "ok" if self.done is not None else "cancelled"
        if self.failed.status == Cancelled.status:
            return "cancelled"
        refused = self.failed.status < 500 or self.failed.code in (Busy.code, Draining.code)
        return "rejected" if refused else "failed"

    def line(self) -> str:
        """What the log keeps of a turn: ids, counts and milliseconds; nothing that was said."""
        fields: dict[str, Any] = {"id": self.turn_id, "surface": self.surface, "outcome": self.outcome}
        if self.failed is not None:
            fields["code"] = self.failed.code
        fields |= {"in_bytes": self.asker.bytes_in, "in_ms": round(1000 * self.audio_in)}
        if self.done is not None:
            fields |= {"finish": self.done.finish, "tokens": self.done.num_tokens, "units": self.done.num_units}
        fields |= {"out_ms": round(1000 * self.audio_out), "out_bytes": self.asker.bytes_out}
        fields |= {f"{name}_ms": round(value) for name, value in self.milliseconds.items()}
        fields["wall_ms"] = round(1000 * (self._registry.clock() - self.arrived))
        return " ".join(f"{name}={value}" for name, value in fields.items())


class Conversing(Protocol):
    """A socket, as a draining registry sees it."""

    def drain(self) -> None:
        """Say what is begun, and leave."""
        ...


class Registry:
    def __init__(
        self,
        config: ServeConfig,
        cluster: Cluster,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.cluster, self.metrics, self.clock = config, cluster, metrics, clock
        self.affinity = Affinity()
        self.live: dict[str, LiveTurn] = {}
        self.draining = False
        self.sockets: set[Conversing] = set()  # live conversations, talking or not
        self._left = asyncio.Event()  # set whenever a turn or a socket leaves
        self.answering: set[str] = set()  # those of the live turns whose question has arrived
        self.uploading = 0  # bytes of bodies that are arriving or being decoded
        # Turn has deadlines of its own; this one only ends a stream that a mistake of ours would let hang.
        deadlines = (config.queue_deadline, config.progress_deadline, config.vocoder_deadline)
        self.guard_seconds = 2 * max(deadlines) + 5.0

    def arrive(self, surface: str, asker: Asker) -> LiveTurn:
        live = LiveTurn(self, surface, asker)
        self.live[live.turn_id] = live
        self.metrics.started.inc()
        self.metrics.live.set(len(self.live))
        return live

    def join(self, conversing: Conversing) -> None:
        self.sockets.add(conversing)
        self.metrics.sockets.set(len(self.sockets))

    def part(self, conversing: Conversing) -> None:
        self.sockets.discard(conversing)
        self.metrics.sockets.set(len(self.sockets))
        self._left.set()

    def admit(self) -> None:
        """Room for one more answer? Questions that are only arriving take no place: slow ones would shut others out."""
        if self.draining:
            raise Draining("This controller is shutting down; another one may answer.", retry_after=RETRY_SECONDS)
        if len(self.answering) >= self.config.max_turns:
            raise Busy(f"{self.config.max_turns} turns are being answered, the limit.", retry_after=RETRY_SECONDS)

    def leave(self, live: LiveTurn) -> None:
        del self.live[live.turn_id]
        self.answering.discard(live.turn_id)
        live.forget_upload()
        self._left.set()
        metrics, outcome = self.metrics, live.outcome
        metrics.live.set(len(self.live))
        metrics.ended.labels(outcome).inc()
        metrics.bytes_in.inc(live.asker.bytes_in)
        metrics.bytes_out.inc(live.asker.bytes_out)
        metrics.audio_in.inc(live.audio_in)
        metrics.audio_out.inc(live.audio_out)
        if live.failed is not None:
            metrics.errors.labels(live.failed.code).inc()
        if "first_audio" in live.milliseconds:
            metrics.first_audio.observe(live.milliseconds["first_audio"] / 1000)
        if live.done is not None and outcome == "ok":
            metrics.turn_seconds.observe(self.clock() - live.arrived)
            metrics.tokens.inc(live.done.num_tokens)
            metrics.units.inc(live.done.num_units)
        logger.info("turn %s", live.line())

    async def drain(self, seconds: float) -> None:
        """No new turns; the live ones may end until the deadline, and are told so when it passes."""
        self.draining = True
        deadline = self.clock() + seconds
        for conversing in list(self.sockets):
            conversing.drain()
        while (self.live or self.sockets) and (left := deadline - self.clock()) > 0:
            self._left.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._left.wait(), left)
        for live in list(self.live.values()):
            live.asker.interrupt(Draining("This controller is shutting down.", retry_after=RETRY_SECONDS))


def retry_after_header(failed: Failed) -> dict[str, str]:
    return {} if failed.retry_after is None else {"retry-after": str(max(1, math.ceil(failed.retry_after)))}
