"""One answer of a live conversation, from a turn of the registry to whoever listens; it may begin silently.

    answering = Answering(registry, listener, ...)    # works at once, and says nothing
    answering.release()                               # from now on its events go to the listener
    answering.stop(Cancelled("The user spoke."))      # nothing of it goes to the listener any more, from now on
    await answering.ended()                           # and here it has given everything back

Nothing is sent further ahead of the listener's ears than `ahead` seconds.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from omni.audio.wav import SAMPLE_RATE
from omni.serve.alignment import Alignment
from omni.serve.asker import Asker
from omni.serve.config import ServeConfig
from omni.serve.errors import Cancelled, OmniError
from omni.serve.playback import Playback
from omni.serve.protocol import AudioDelta, Done, Failed, Message, Sampling, TextDelta
from omni.serve.registry import LiveTurn, Registry, failure

SAMPLE_BYTES = 2  # int16


class Listener(Protocol):
    def said(self, answering: "Answering", event: TextDelta | AudioDelta | Done) -> None: ...

    def failed(self, answering: "Answering", failed: Failed) -> None: ...


class Answering:
    def __init__(
        self,
        registry: Registry,
        listener: Listener,
        messages: Sequence[Message],
        sampling: Sampling,
        *,
        spoken: bool,
        config: ServeConfig,
        room: Callable[[], Awaitable[None]],
        bytes_in: int = 0,
        prefer: str = "",
        adaptor: str = "",
    ) -> None:
        self.asker = Asker()
        self.asker.bytes_in = bytes_in
        self.live: LiveTurn = registry.arrive("realtime", self.asker)
        self.playback = Playback(config.audio_ahead)
        self.over = False  # the listener hears nothing more
        self.speculative = False  # begun before it was known that the question is complete
        self.unsent = 0.0  # seconds of sound that were withdrawn
        self._spoken = spoken
        self._listener, self._registry, self._room = listener, registry, room
        self._reader_deadline = config.client_deadline
        self._released, self._reported = asyncio.Event(), asyncio.Event()
        told = {"prefer": prefer, "adaptor": adaptor}
        answer = self.live.answer(messages, sampling, audio=spoken, config=config, **told)
        self._task = asyncio.create_task(self._run(answer), name=f"answer {self.live.turn_id}")

    def release(self) -> None:
        """The question is complete: what was held back leaves now."""
        self.live.complete()
        self._released.set()

    def stop(self, error: OmniError) -> None:
        self.over = True
        self.asker.interrupt(error)

    async def ended(self) -> None:
        await asyncio.gather(self._task, return_exceptions=True)

    def report(self, played: float) -> None:
        """The listener has heard so many seconds of it."""
        self.playback.report(played)
        self._reported.set()

    @property
    def worker(self) -> str:
        """The model worker that answers; "" before one does."""
        return "" if self.live.turn is None else self.live.turn.ledger.worker

    @property
    def has_failed(self) -> bool:
        return self.live.failed is not None

    def when_ended(self, callback: Callable[["Answering"], Any]) -> None:
        self._task.add_done_callback(lambda task: callback(self))

    # --- what is known of it ------------------------------------------------------------------------------------------

    @property
    def heard_seconds(self) -> float:
        """As the client reports; else all that was sent."""
        sent = self.playback.seconds_sent - self.unsent
        return sent if self.playback.reported is None else min(self.playback.reported, sent)

    def alignment(self) -> Alignment:
        turn = self.live.turn
        return Alignment(spoken=self._spoken) if turn is None else turn.alignment()

    def usage(self) -> dict[str, Any] | None:
        """None before the prompt's length is known."""
        ledger = None if self.live.turn is None else self.live.turn.ledger
        if ledger is None or not ledger.num_prompt_tokens:
            return None
        asked, answered = ledger.num_prompt_tokens, len(ledger.tokens)
        counts = {"input_tokens": asked, "output_tokens": answered, "total_tokens": asked + answered}
        return counts | {"input_token_details": {"cached_tokens": ledger.num_cached_tokens}}

    def timing(self) -> dict[str, Any]:
        """Milliseconds after the question was complete."""
        known = {f"{name}_ms": round(value, 1) for name, value in self.live.milliseconds.items()}
        return known | {"speculative": self.speculative}

    # --- its task -----------------------------------------------------------------------------------------------------

    async def _run(self, answer: AsyncGenerator[TextDelta | AudioDelta | Done, None]) -> None:
        live = self.live
        failed: Failed | None = None
        try:
            async with aclosing(answer) as events:
                async for event in events:
                    await self.asker.unless_gone(self._released.wait())
                    if isinstance(event, AudioDelta):
                        await self._keep_pace(event)
                    if not self.over:
                        self._listener.said(self, event)
        except asyncio.CancelledError:
            live.failed = failure(Cancelled("The server stopped."))
            raise
        except Exception as exc:
            live.failed = failed = failure(exc)
        finally:
            self._registry.leave(live)
        if failed is not None and self._released.is_set() and not self.over:
            self._listener.failed(self, failed)

    async def _keep_pace(self, event: AudioDelta) -> None:
        """Wait until the listener is near enough, and the socket has room."""
        await self.asker.unless_gone(self._room())
        loop = asyncio.get_running_loop()
        while (wait := self.playback.wait(loop.time())) > 0:
            self._reported.clear()
            patience = self._reader_deadline if math.isinf(wait) else wait
            try:
                async with asyncio.timeout(patience):
                    await self.asker.unless_gone(self._reported.wait())
            except TimeoutError as exc:
                if math.isinf(wait):
                    message = f"The client has reported no playback for {patience:g} s."
                    raise Cancelled(message, code="client_too_slow") from exc
        self.playback.sent(len(event.pcm16) / SAMPLE_BYTES / SAMPLE_RATE, loop.time())
