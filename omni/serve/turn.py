"""One spoken turn, owned by the controller: question in, ordered events out, whatever becomes of the workers.

    turn = Turn(cluster, config, messages, sampling)
    async for event in turn.run():       # TextDelta and AudioDelta as they come; the last is Done or Failed
        ...                              # leaving the loop (client gone) gives everything back
    await turn.cancel()                  # from elsewhere: the user spoke again

    model worker ──Tokens──→ Ledger ──text───────────────────────────→ ┐
                                └──units──→ ChunkPlanner ⇄ vocoder ──→ ┘ outbox → run()

Workers are caches: the ledger holds all that was received, so another model worker can go on with the tokens forced,
and any vocoder worker can make any chunk. Every recovery raises the epoch; messages of an old epoch, doubled ones and
gaps are told by their numbers. A listener who holds back (a paused player, a reader that does not read) goes the same
way: the worker is left, and asked for the rest once there is room for it. Knows the cluster only as `cluster.Cluster`:
no Ray, no HTTP, no torch.
"""

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from omni.serve import chunks, errors
from omni.serve.alignment import Alignment
from omni.serve.cluster import Cluster, Kind
from omni.serve.config import ServeConfig
from omni.serve.protocol import AudioDelta, Done, Event, Failed, Message, Sampling, TextDelta, Tokens, TurnRequest
from omni.vocoder.streaming import Chunk, ChunkError, ChunkReply, samples_per_frame

logger = logging.getLogger(__name__)

GREEDY = Sampling()
OUTBOX_EVENTS = 64  # a slow client holds the turn up here, and not in memory
HOLD_SECONDS = 5.0  # a listener who takes nothing for so long, of a full outbox, gives the worker's slot back
SLOT_RETRY = 0.1  # seconds between two knocks at a full worker, while an answer is interrupted
RETRY_AFTER = 2.0  # seconds until a lost worker is usually replaced


@dataclass(frozen=True)
class VoiceShape:
    """What the planner has to know of the vocoder; read once per checkpoint."""

    num_units: int
    samples_per_frame: int
    config: Mapping[str, Any]  # of the vocoder

    @classmethod
    @lru_cache
    def read(cls, directory: str) -> "VoiceShape":
        config = json.loads((Path(directory) / "config.json").read_text())
        return cls(config["num_embeddings"], samples_per_frame(config), config)


class Ledger:
    """All that was received of one answer: enough to judge the next message, and to go on at another worker."""

    def __init__(
        self,
        turn_id: str,
        messages: Iterable[Message],
        sampling: Sampling,
        num_units: int,
        worker: str = "",
        adaptor: str = "",
    ) -> None:
        self.turn_id = turn_id
        self.messages = tuple(messages)
        self.sampling = sampling
        self.epoch = 0
        self.worker = worker  # who answers, or before that, who should
        self.adaptor = adaptor
        self.tokens: list[int] = []
        self.ends: list[tuple[int, int]] = []  # of each token: units and characters of the answer up to its end
        self.text = ""
        self.units_received = 0
        self.finish: str | None = None
        self.num_prompt_tokens = self.num_cached_tokens = 0
        self.timings: dict[str, float] = {}
        self._num_units = num_units
        self._expected = 0  # number of the epoch's next message

    def request(self) -> TurnRequest:
        """What to ask a model worker now: the whole answer, or its rest."""
        received = tuple(self.tokens), self.units_received
        asked = self.turn_id, self.epoch, self.messages, self.sampling
        return TurnRequest(*asked, *received, self.worker, self.adaptor)

    def raise_epoch(self) -> None:
        """From now on, everything under way is late."""
        self.epoch += 1
        self._expected = 0

    def accept(self, message: Tokens) -> bool:
        """Book a message; False for a late or doubled one. Raises WorkerLost where one is missing or makes no sense."""
        if message.epoch != self.epoch or message.number < self._expected or self.finish:
            return False
        if message.number > self._expected:
            raise errors.WorkerLost(f"Message {self._expected} of the model worker is missing.")
        if any(not 0 <= unit < self._num_units for unit in message.units):
            raise errors.Internal(f"The model worker sent a unit outside 0…{self._num_units - 1}.")
        if message.ends and len(message.ends) != len(message.token_ids):
            raise errors.Internal("The model worker sent ends that do not fit its tokens.")
        self._expected += 1
        self.tokens.extend(message.token_ids)
        self.text += message.text
        self.units_received += len(message.units)
        # a worker that gives no ends: the tokens end where their message does
        self.ends.extend(message.ends or ((self.units_received, len(self.text)),) * len(message.token_ids))
        self.finish = message.finish
        self.worker = message.worker or self.worker
        if message.num_prompt_tokens and not self.num_prompt_tokens:  # a heartbeat does not say, and a second epoch
            # reads again what this answer has read
            self.num_prompt_tokens, self.num_cached_tokens = message.num_prompt_tokens, message.num_cached_tokens
        self.timings.update(message.timings)
        return True


class HeldBack(Exception):
    """The listener takes nothing: what a worker makes now would only wait."""


class Turn:
    """See the module. `run()` is iterated once; it raises nothing but CancelledError."""

    def __init__(
        self,
        cluster: Cluster,
        config: ServeConfig,
        messages: Iterable[Message],
        sampling: Sampling = GREEDY,
        *,
        audio: bool = True,
        turn_id: str | None = None,
        prefer: str = "",
        adaptor: str = "",
    ) -> None:
        self.id = turn_id or uuid.uuid4().hex
        voice = VoiceShape.read(config.vocoder)
        self.ledger = Ledger(self.id, messages, sampling, voice.num_units, prefer, adaptor)
        self.recoveries = 0
        self.outcome: Done | Failed | None = None
        self._cluster = cluster
        self._config = config
        self._planner = chunks.planner(voice.config, config)
        self._audio, self._samples_per_frame = audio, voice.samples_per_frame
        self._more_units = asyncio.Event()
        self._outbox: asyncio.Queue[Event] = asyncio.Queue()  # who fills it waits for `_room` first
        self._taken = asyncio.Event()  # set whenever the listener takes something
        self._work: asyncio.Task[None] | None = None
        self._cancelled = False
        self._start = 0.0
        self._delivered = 0  # samples that left through run()
        self._samples = 0  # the cursor: where the next AudioDelta starts

    async def run(self) -> AsyncGenerator[Event]:
        """The answer's events as they come. The last one is Done or Failed."""
        assert self._work is None, "a turn runs once"
        self._start = _now()
        if not self._cancelled:
            self._work = asyncio.create_task(self._answer(), name=f"turn {self.id}")
        try:
            while True:
                event = await self._outbox.get()
                self._taken.set()
                if isinstance(event, Done | Failed):
                    self.outcome = event
                elif isinstance(event, AudioDelta):
                    self._delivered += len(event.pcm16) // 2
                yield event
                if self.outcome is not None:
                    return
        finally:
            await self._stop()

    async def cancel(self, reason: str = "The turn was cancelled.") -> None:
        """End the turn now: nothing queued or late is delivered, the workers stop within a step."""
        if self._cancelled or self.outcome is not None:
            return
        self._cancelled = True
        self.ledger.raise_epoch()
        await self._stop()
        self._end_with(errors.Cancelled(reason))

    def alignment(self) -> Alignment:
        """The answer as far as it was made, and which sample each token sounds until; also after its end."""
        ledger, planner = self.ledger, self._planner
        count = len(ledger.tokens) - (ledger.finish == "stop")  # the end token says nothing
        ends = ledger.ends[:count]
        samples = [
            frames * self._samples_per_frame for each, _ in ends if (frames := planner.frames_of(each)) is not None
        ]
        return Alignment(
            tuple(ledger.tokens[:count]),
            ledger.text,
            tuple(chars for _, chars in ends),
            tuple(each for each in samples if each <= self._delivered),
            self._delivered,
            whole=planner.done and self._delivered == self._samples,
            spoken=self._audio,
        )

    # --- the two halves -----------------------------------------------------------------------------------------------

    async def _answer(self) -> None:
        try:
            async with asyncio.TaskGroup() as halves:
                halves.create_task(self._think())
                if self._audio:
                    halves.create_task(self._speak())
        except ExceptionGroup as group:
            await self._outbox.put(failed(group.exceptions[0]))
        else:
            await self._outbox.put(self._done())

    async def _think(self) -> None:
        """Follow the answer of one model worker after another until it is finished."""
        bugs = losses = 0
        heard = -1  # tokens, when the last worker was lost
        give_up = 0.0  # when a begun answer, lost by its worker, stops looking for another slot
        while True:
            try:
                return await self._follow(self._cluster.generate(self.ledger.request()))
            except HeldBack:
                await self._room(OUTBOX_EVENTS // 2)
                give_up = _now() + self._config.queue_deadline
                self.ledger.raise_epoch()
                continue
            except errors.Busy:
                if _now() >= give_up:
                    raise
                await asyncio.sleep(SLOT_RETRY)
                self.ledger.raise_epoch()
                continue
            except (errors.WorkerLost, errors.Internal) as exc:
                logger.warning("turn %s epoch %d: %s", self.id, self.ledger.epoch, exc.message)
                bugs += isinstance(exc, errors.Internal)
                losses = losses + 1 if len(self.ledger.tokens) == heard else 1
                heard = len(self.ledger.tokens)
                if bugs > 1:  # not the worker's fault: this turn breaks every worker it meets
                    raise
                if losses >= self._config.attempts:
                    lost = f"{losses} model workers in a row were lost during this answer; the last: {exc.message}"
                    raise errors.WorkerLost(lost, retry_after=RETRY_AFTER) from exc
            give_up = _now() + self._config.queue_deadline
            self.recoveries += 1
            self.ledger.raise_epoch()

    async def _follow(self, stream: AsyncIterator[Tokens]) -> None:
        watch = Watch(self._config, _now())
        try:
            while self.ledger.finish is None:
                message = await self._next(stream, watch)
                if not self.ledger.accept(message):
                    continue
                if watch.heard(message, _now()):
                    self._suspect("model")
                    raise errors.WorkerLost(f"No new token for {self._config.progress_deadline:g} s.")
                self._deliver(message)
                if self.ledger.finish is None:
                    await self._room(OUTBOX_EVENTS, HOLD_SECONDS)
        finally:
            await _close(stream)

    async def _room(self, most: int, patience: float | None = None) -> None:
        """Until fewer than `most` events wait to be taken. HeldBack where none is taken for `patience` seconds."""
        while self._outbox.qsize() >= most:
            self._taken.clear()
            try:
                async with asyncio.timeout(patience):
                    await self._taken.wait()
            except TimeoutError:
                raise HeldBack from None

    async def _next(self, stream: AsyncIterator[Tokens], watch: "Watch") -> Tokens:
        """The stream's next message, or WorkerLost after silence."""
        pending = asyncio.ensure_future(anext(stream))
        try:
            while True:
                await asyncio.wait({pending}, timeout=self._config.silence_deadline)
                if pending.done():
                    return pending.result()
                if self._suspect("model"):
                    raise errors.WorkerLost(f"A model worker was silent for {self._config.silence_deadline:g} s.")
                watch.check_queue(_now())
        except StopAsyncIteration:
            raise errors.WorkerLost("A model worker ended its answer early.") from None
        finally:
            await _abandon({pending})

    def _deliver(self, message: Tokens) -> None:
        self._planner.push(message.units)
        if message.finish:
            self._planner.finish()
        self._more_units.set()
        if message.text:
            self.ledger.timings.setdefault("first_text", _now() - self._start)
            self._outbox.put_nowait(TextDelta(message.text))

    async def _speak(self) -> None:
        """Vocode chunk after chunk; tokens go on arriving meanwhile."""
        while not self._planner.done:
            self._more_units.clear()
            chunk = self._planner.next()
            if chunk is None:
                await self._more_units.wait()
                continue
            await self._room(OUTBOX_EVENTS)
            reply = await self._vocode(chunk)
            if reply.pcm:
                self.ledger.timings.setdefault("first_audio", _now() - self._start)
                start, self._samples = self._samples, self._samples + len(reply.pcm) // 2
                await self._outbox.put(AudioDelta(reply.pcm, start))

    async def _vocode(self, chunk: Chunk) -> ChunkReply:
        """The chunk's reply from whichever worker is first: a lost one is replaced, a slow one gets a rival."""
        config, calls, failures = self._config, set[asyncio.Task[ChunkReply]](), 0
        give_up = _now() + config.vocoder_deadline
        taken = True
        try:
            while True:
                if taken and len(calls) < 2:
                    calls.add(asyncio.create_task(self._cluster.vocode(self.id, self.ledger.epoch, chunk)))
                patience = max(0.0, min(config.vocoder_hedge, give_up - _now()))
                done, calls = await asyncio.wait(calls, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                for call in done:
                    try:
                        if self._planner.accept(call.result()):
                            return call.result()
                    except (errors.WorkerLost, errors.Internal, ChunkError) as exc:
                        logger.warning("turn %s chunk %d: %s", self.id, chunk.number, exc)
                        failures += 1
                        if failures >= config.attempts:
                            lost = f"{failures} vocoder workers failed at one chunk; the last: {exc}"
                            raise errors.WorkerLost(lost, retry_after=RETRY_AFTER) from exc
                taken = bool(done) or self._suspect("vocoder")
                if _now() >= give_up:
                    raise errors.Busy(
                        f"No vocoder worker made the chunk within {config.vocoder_deadline:g} s.",
                        retry_after=RETRY_AFTER,
                    )
        finally:
            await _abandon(calls)

    # --- helpers of both ----------------------------------------------------------------------------------------------

    def _suspect(self, kind: Kind) -> bool:
        return self._cluster.suspect(kind, self.id)

    def _done(self) -> Done:
        ledger = self.ledger
        assert ledger.finish is not None
        timings = ledger.timings | {"total": _now() - self._start}
        return Done(
            ledger.text,
            ledger.finish,
            len(ledger.tokens),
            ledger.units_received,
            self._samples,
            timings,
            ledger.num_prompt_tokens,
            ledger.num_cached_tokens,
        )

    def _end_with(self, error: errors.OmniError) -> None:
        while not self._outbox.empty():
            self._outbox.get_nowait()
        self._outbox.put_nowait(failed(error))

    async def _stop(self) -> None:
        if self._work is not None:
            await _abandon({self._work})


class Watch:
    """Judges how long a turn has been waiting for a slot, or for its next token. Decides only; time is passed in."""

    def __init__(self, config: ServeConfig, now: float) -> None:
        self._config = config
        self._start = now
        self._progress: float | None = None  # when the last token came, or the slot

    def heard(self, message: Tokens, now: float) -> bool:
        """A message came. True: the worker lives, but makes no progress. Raises Busy after too long in the queue."""
        if message.token_ids or message.units or message.finish:
            self._progress = now
        elif message.waiting:
            self.check_queue(now)
        elif self._progress is None:
            self._progress = now
        return self._progress is not None and now - self._progress >= self._config.progress_deadline

    def check_queue(self, now: float) -> None:
        if now - self._start >= self._config.queue_deadline:
            raise errors.Busy(
                f"No model worker had a free slot within {self._config.queue_deadline:g} s.", retry_after=RETRY_AFTER
            )


def failed(error: BaseException) -> Failed:
    """Any exception → the event a client sees. Our mistakes are logged whole and told in one sentence."""
    if not isinstance(error, errors.OmniError):
        logger.error("a turn failed", exc_info=error)
        error = errors.Internal("An internal error ended this turn.")
    return Failed(error.code, error.message, error.status, error.retry_after)


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _abandon(tasks: set) -> None:
    """Cancel the tasks and wait for their end; what they raise is of no interest any more."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.gather(*tasks, return_exceptions=True)


async def _close(stream: AsyncIterator) -> None:
    with suppress(Exception):
        await stream.aclose()  # type: ignore[attr-defined]
