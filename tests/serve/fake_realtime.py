"""A controller that speaks /v1/realtime without a model: scripted answers, faults on request. For tests of the page.

    with FakeRealtime() as fake:
        ... f"http://127.0.0.1:{fake.port}" is the controller's URL ...

Answer n sounds as samples of value 1000 · n and says "Answer n …": what comes out of a loudspeaker names its answer.
Hearing is a threshold on the loudness of what is appended, with the silence the session asks for.
"""

import asyncio
import base64
import itertools
import json
import struct
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

RATE = 16_000
PIECE = 1600  # samples of an answer in one frame: 100 ms
LOUD = 0.01  # root mean square of a 20 ms frame that is speech
WORDS = "Answer {number} has quite a few words, so that one sees which of them were heard and which were not."


class FakeRealtime:
    def __init__(self, *, seconds: float = 3.0, ours: bool = True, api_key: str | None = None) -> None:
        self.seconds = seconds  # of every answer
        self.ours = ours  # with omni's extensions: binary frames
        self.api_key = api_key
        self.close_code = 0  # every new socket is closed with it
        self.remembers = True  # sessions can be resumed
        self.store_away = 0  # so many resumptions find no store
        self.lose_token = False  # the line breaks once, before the next resumption is answered
        self.numbers = itertools.count()
        self.tokens: dict[str, str] = {}  # token → the session it resumes
        self.fail_next = ""  # the code that the next answer fails with
        self.events: list[dict[str, Any]] = []  # what came, audio aside
        self.sockets: list[Conversing] = []
        self.opened = self.closed = 0
        self.answers = 0  # of all sockets together
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._ready = threading.Event()

    def __enter__(self) -> "FakeRealtime":
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def live(self) -> list["Conversing"]:
        return [each for each in self.sockets if each.is_live]

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in list(self.events) if event["type"] == kind]

    def pcm(self) -> np.ndarray:
        """All samples that came, of all sockets, (S,) int16."""
        return np.frombuffer(b"".join(bytes(each.pcm) for each in self.sockets), dtype="<i2")

    def do(self, act: Callable[["Conversing"], Any]) -> None:
        """To every live socket, in the server's thread: `fake.do(lambda socket: socket.hang_up(1012))`."""

        async def all_of_them() -> None:
            await asyncio.gather(*(act(each) for each in self.live))

        asyncio.run_coroutine_threadsafe(all_of_them(), self._loop).result(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        settings: dict[str, Any] = {"compression": None, "process_request": self._admit, "close_timeout": 1}
        async with serve(self._converse, "127.0.0.1", 0, **settings) as server:
            self.port = server.sockets[0].getsockname()[1]
            self._ready.set()
            await self._stop.wait()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        if self.api_key and request.headers.get("authorization") != f"Bearer {self.api_key}":
            return connection.respond(401, "")
        return None

    async def _converse(self, connection: ServerConnection) -> None:
        self.opened += 1
        try:
            if self.close_code:
                await connection.close(self.close_code)
                return
            conversing = Conversing(self, connection)
            self.sockets.append(conversing)
            await conversing.run()
        except ConnectionClosed:
            pass
        finally:
            self.closed += 1


class Conversing:
    """One socket."""

    def __init__(self, fake: FakeRealtime, connection: ServerConnection) -> None:
        self.fake, self.connection = fake, connection
        self.pcm = bytearray()  # everything appended
        self.turn_detection: dict[str, Any] | None = {"silence_duration_ms": 500}
        self.is_live = True
        self.heard_to = 0  # bytes of pcm that hearing has looked at
        self.speaking = False
        self.quiet = 0  # frames
        self.answering: asyncio.Task[None] | None = None
        self.number = 0
        self.response_id = self.spent = ""

    async def run(self) -> None:
        self.session: dict[str, Any] = {"id": f"sess_{len(self.fake.sockets)}", "type": "realtime"}
        if self.fake.ours:
            self.session["omni"] = {"first_chunk": 10, "binary_audio": False}
        await self.say("session.created", session=self.session)
        await self.give_token()
        try:
            async for message in self.connection:
                if isinstance(message, bytes):
                    await self.append(message)
                else:
                    await self.take(json.loads(message))
        finally:
            self.is_live = False
            if self.answering:
                self.answering.cancel()

    async def give_token(self) -> None:
        if self.fake.ours:
            token = f"token {next(self.fake.numbers)}"
            self.fake.tokens[token] = self.session["id"]
            await self.say("omni.session.token", session_id=self.session["id"], token=token, expires_in=3600)

    async def resume(self, token: str) -> None:
        found = self.fake.tokens.get(token)  # until the next one is acknowledged
        if self.fake.lose_token:
            self.fake.lose_token = False
            self.connection.transport.abort()
            return
        if self.fake.store_away:
            self.fake.store_away -= 1
            error = {"code": "store_lost", "message": "The session store does not answer.", "event_id": None}
            await self.say("error", error=error)
            return
        if found is None or not self.fake.remembers:
            error = {"code": "session_not_resumable", "message": "No such session.", "event_id": None}
            await self.say("error", error=error)
            return
        self.session["id"], self.spent = found, token
        await self.say("session.updated", session=self.session)
        await self.give_token()

    async def hang_up(self, code: int, reason: str = "") -> None:
        await self.connection.close(code, reason)

    async def break_off(self) -> None:
        self.connection.transport.abort()

    async def take(self, event: dict[str, Any]) -> None:
        if event["type"] == "input_audio_buffer.append":
            await self.append(base64.b64decode(event["audio"]))
            return
        self.fake.events.append(event)
        match event["type"]:
            case "session.update":
                self.turn_detection = event["session"]["audio"]["input"]["turn_detection"]
                await self.say("session.updated", session={**self.session, **event["session"]})
            case "omni.session.resume":
                await self.resume(event["token"])
            case "omni.session.acknowledge":
                del self.fake.tokens[self.spent]
            case "input_audio_buffer.commit":
                await self.say("input_audio_buffer.committed", item_id="item_q", previous_item_id=None)
            case "response.create":
                self.answer()
            case "response.cancel":
                await self.cancel("client_cancelled")

    async def say(self, kind: str, **fields: Any) -> None:
        await self.connection.send(json.dumps({"type": kind, "event_id": "event", **fields}))

    # --- hearing ------------------------------------------------------------------------------------------------------

    async def append(self, pcm: bytes) -> None:
        self.pcm += pcm
        while len(self.pcm) - self.heard_to >= 640:
            frame = np.frombuffer(bytes(self.pcm[self.heard_to : self.heard_to + 640]), dtype="<i2")
            self.heard_to += 640
            if self.turn_detection:
                await self.hear(bool(np.sqrt(np.mean((frame / 32768.0) ** 2)) > LOUD))

    async def hear(self, loud: bool) -> None:
        assert self.turn_detection is not None
        now_ms = self.heard_to // 32
        self.quiet = 0 if loud else self.quiet + 1
        if loud and not self.speaking:
            self.speaking = True
            start = max(0, now_ms - 300)
            await self.say("input_audio_buffer.speech_started", audio_start_ms=start, item_id="item_q")
            await self.cancel("turn_detected")
        elif self.speaking and self.quiet * 20 >= self.turn_detection["silence_duration_ms"]:
            self.speaking = False
            await self.say("input_audio_buffer.speech_stopped", audio_end_ms=now_ms, item_id="item_q")
            await self.say("input_audio_buffer.committed", item_id="item_q", previous_item_id=None)
            self.answer()

    # --- answering ----------------------------------------------------------------------------------------------------

    def answer(self) -> None:
        self.fake.answers += 1
        self.number += 1
        self.answering = asyncio.create_task(self.respond(self.fake.answers))

    async def cancel(self, reason: str) -> None:
        if self.answering is None or self.answering.done():
            return
        self.answering.cancel()
        await asyncio.gather(self.answering, return_exceptions=True)
        await self.done("cancelled", {"type": "cancelled", "reason": reason})

    async def done(self, status: str, details: dict[str, Any] | None) -> None:
        omni = {"number": self.number, "timing": {"first_audio_ms": 12}}
        response = {"id": self.response_id, "status": status, "status_details": details, "omni": omni}
        await self.say("response.done", response=response)

    async def respond(self, number: int) -> None:
        self.response_id, item = f"resp_{number}", f"item_{number}"
        where = {"response_id": self.response_id, "item_id": item, "output_index": 0, "content_index": 0}
        omni = {"number": self.number}
        response = {"id": self.response_id, "status": "in_progress", **({"omni": omni} if self.fake.ours else {})}
        await self.say("response.created", response=response)
        if self.fake.fail_next:
            error = {"code": self.fake.fail_next, "message": "It ended while it was answering."}
            self.fake.fail_next = ""
            await self.done("failed", {"type": "failed", "error": error})
            return
        await self.say("response.output_item.added", response_id=self.response_id, output_index=0, item={"id": item})
        words, said = WORDS.format(number=number).split(" "), 0
        samples = np.full(int(self.fake.seconds * RATE), 1000 * number, dtype="<i2")
        pieces = range(0, len(samples), PIECE)
        for index, first in enumerate(pieces):
            portion = words[said : (index + 1) * len(words) // len(pieces)]
            if portion:
                delta = " " * (said > 0) + " ".join(portion)
                said += len(portion)
                await self.say("response.output_audio_transcript.delta", **where, delta=delta)
            await self.sound(where, index, first, samples[first : first + PIECE].tobytes())
            await asyncio.sleep(PIECE / RATE / 4)  # four times as fast as it is heard
        await self.say("response.output_audio.done", **where)
        await self.done("completed", None)

    async def sound(self, where: dict[str, Any], index: int, first: int, pcm: bytes) -> None:
        if self.fake.ours:
            await self.connection.send(struct.pack(">III", self.number, first, index) + pcm)
        else:
            await self.say("response.output_audio.delta", **where, delta=base64.b64encode(pcm).decode())
