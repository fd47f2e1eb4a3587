"""A load's people over WS /v1/realtime, hands-free: an open microphone, turns detected by the server, playback told.

    async with Live(url, key, settings, asked) as transport:
        async for event in transport.speaker().ask(question): ...

A question is a recording said in real time; silence goes on after it until the server takes it for complete. Who
interrupts, speaks on: the answer is silent once the server has said that somebody speaks and nothing of it comes any
more. No torch.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any

from bench import endpoints
from bench.endpoints import Bounds
from bench.microphone import Microphone
from bench.playback import SAMPLE_RATE, Playback
from bench.transports import Question, Silenced, Spoken
from omni.serve.protocol import AudioDelta, Done, Event, Failed, TextDelta
from omni.serve.realtime_client import (
    Answered,
    Heard,
    LiveEvent,
    Problem,
    RealtimeError,
    RealtimeSession,
    Resumed,
    Sound,
    SpeechStarted,
    Started,
    Words,
    connect_realtime,
)
from omni.serve.turn_taking import Settings

REPORT_SECONDS = 0.2  # between two reports of what was heard


class Live:
    def __init__(
        self,
        url: str,
        api_key: str | None,
        options: dict[str, Any],
        asked: dict[Question, Bounds],
        silence_ms: int,
    ) -> None:
        self.url, self.api_key, self.asked = url, api_key, asked
        tokens, seed = options.get("max_new_tokens"), options.get("seed")
        detection = {"type": "server_vad", "silence_duration_ms": silence_ms}
        self.settings: dict[str, Any] = {"audio": {"input": {"turn_detection": detection}}}
        if tokens is not None:
            self.settings["max_output_tokens"] = tokens
        self.settings["omni"] = {"speech_ms": Settings.speech_ms}  # what the bounds were found with
        if seed is not None:
            self.settings["omni"]["seed"] = seed

    def speaker(self) -> "_LiveSpeaker":
        return _LiveSpeaker(self)

    async def __aenter__(self) -> "Live":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


def hearable(asked: Sequence[Question], silence_ms: int) -> dict[Question, Bounds]:
    """Those that a server takes for one question each, and when."""
    found = ((question, endpoints.find(question.pcm16, silence_ms)) for question in asked)
    return {question: bounds for question, bounds in found if bounds is not None}


class _LiveSpeaker:
    talks_over = True

    def __init__(self, transport: Live) -> None:
        self._transport = transport
        self._session: RealtimeSession | None = None
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._events: asyncio.Queue[tuple[float, LiveEvent | RealtimeError, bool]] = asyncio.Queue()
        self._ended: RealtimeError | None = None
        self._playback: Playback | None = None  # of the answer that is to be heard
        self._arriving = False
        self._reported = 0.0

    async def ask(self, question: Question) -> AsyncGenerator[Event | Spoken | Silenced]:
        try:
            if self._session is None:
                await self._connect()
            if self._ended is not None:
                raise self._ended
        except RealtimeError as exc:
            await asyncio.sleep(question.seconds)  # who gets no line does not try all the time
            yield Failed(exc.code, exc.message, 503)
            return
        bounds, began = self._transport.asked[question], await self._microphone.say(question.pcm16)
        yield Spoken(Microphone.sent(began, bounds.last_word), Microphone.sent(began, bounds.committed))
        async with aclosing(self._answer(began, bounds)) as events:
            async for event in events:
                yield event

    async def _answer(self, began: float, bounds: Bounds) -> AsyncGenerator[Event | Silenced]:
        """What comes from the question's beginning on; the answer before it may still be heard then."""
        told: float | None = None  # that somebody speaks, over an answer
        silent = 0.0
        committed = False
        while True:
            at, event, audible = await self._events.get()
            match event:
                case SpeechStarted() if audible and told is None:
                    told = silent = at
                case Sound() if not committed:
                    silent = at
                case Heard():
                    committed = True
                    if told is not None:
                        speech = began + bounds.speech / SAMPLE_RATE
                        onset = Microphone.sent(began, bounds.onset)
                        yield Silenced(silent - speech, silent - onset, silent - told)
                case Sound(pcm16=pcm16, first_sample=first_sample):
                    yield AudioDelta(pcm16, first_sample)
                case Words(text=text) if committed:
                    yield TextDelta(text)
                case Answered() if committed:
                    yield _end(event)
                    return
                case Problem(code=code, message=message):
                    yield Failed(code, message, 400)
                    return
                case Resumed(unanswered=True):
                    yield Failed("connection_lost", "The line broke.", 503)
                    return
                case RealtimeError() as exc:
                    yield Failed(exc.code, exc.message, 503)
                    return

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    # --- its socket ---------------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        own = self._transport
        connecting = connect_realtime(own.url, own.api_key, settings=own.settings, attempts=1)
        self._session = await self._stack.enter_async_context(connecting)
        self._microphone = Microphone(self._send)
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._microphone.run())]

    async def _listen(self) -> None:
        assert self._session is not None, "the socket is open"
        loop = asyncio.get_running_loop()
        ended = RealtimeError("closed", "The controller ended the conversation.")
        try:
            async for event in self._session:
                now = loop.time()
                audible = self._arriving or (self._playback is not None and self._playback.ends > now)
                self._events.put_nowait((now, event, audible))
                self._play(now, event)
        except RealtimeError as exc:
            ended = exc
        self._ended = ended
        self._events.put_nowait((loop.time(), ended, False))

    def _play(self, now: float, event: LiveEvent) -> None:
        match event:
            case Started():
                self._playback, self._arriving = Playback(), True
            case Sound(item_id=item_id, pcm16=pcm16) if self._playback is not None:
                self._item_id = item_id
                self._playback.receive(now, len(pcm16) // 2)
            case SpeechStarted():
                self._playback = None  # it is silent from here on
            case Answered():
                self._arriving = False

    async def _send(self, frame: bytes) -> None:
        assert self._session is not None, "the socket is open"
        await self._session.append(frame)
        now, playback = asyncio.get_running_loop().time(), self._playback
        if playback is not None and playback.started is not None and now - self._reported >= REPORT_SECONDS:
            self._reported = now
            await self._session.played(self._item_id, 1000 * (playback.seconds - max(0.0, playback.ends - now)))


def _end(event: Answered) -> Done | Failed:
    if event.status == "completed" or event.reason == "max_output_tokens":
        return Done("", "stop" if event.status == "completed" else "length", 0, 0, 0)
    return Failed(event.reason or event.status, f"The answer ended as {event.status}.", 503)
