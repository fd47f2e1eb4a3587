"""A client of live conversations, over WS /v1/realtime. Knows the protocol (docs/protocol.md); knows no torch, no Ray.

    async with connect_realtime("http://127.0.0.1:8000", api_key) as session:
        await session.ask(pcm16)                                     # int16, mono, 16 kHz
        async for event in session:
            match event:
                case Words(text=text): print(text, end="")
                case Sound(pcm16=pcm16): play(pcm16)                 # int16, mono, 16 kHz
                case Answered(): await session.ask(next_question)

The loop over the events is what keeps the conversation alive: a line that breaks, or a controller that restarts (1012),
is connected again there, and the session resumed, later where its store is away; `Resumed` then tells whether to ask
a question again. A session ends with its loop, or with a RealtimeError that says why. Leaving the block closes the
socket.
"""

import asyncio
import contextlib
import json
import random
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

RATE = 16_000  # samples a second, both ways
SAMPLE_BYTES = 2
PORTION_BYTES = 2**15  # of a question, in one message
FRAME_HEADER = struct.Struct(">III")  # response, first sample, frame
CONNECT_SECONDS = 5.0
OPEN_SECONDS = 10.0  # from the connection to a session that is open, or resumed
SEND_SECONDS = 60.0  # for a message to leave: the controller listens no faster than it hears
CLOSE_SECONDS = 2.0
ATTEMPTS = 6
FIRST_WAIT, LONGEST_WAIT = 0.25, 8.0  # seconds between attempts, doubled each time
ENDED, RESTARTING, FULL = 1000, 1012, 1013
BROKEN = (None, 1001, 1005, 1006, RESTARTING, FULL)  # close codes after which the session may go on elsewhere
STORE_LOST = "store_lost"  # the code of an error: the session is not given up for it
PUSH_TO_TALK = {"audio": {"input": {"turn_detection": None}}}


class RealtimeError(Exception):
    """The conversation cannot begin, or is over. `code` is the protocol's; the message says what to do."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class _TryAgain(Exception):
    """This attempt failed, the next may not."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heard:
    """A question is complete."""

    item_id: str


@dataclass(frozen=True)
class SpeechStarted:
    """Somebody speaks (only with turn detection): stop playing now."""

    item_id: str


@dataclass(frozen=True)
class Started:
    """An answer begins; nothing of an earlier one follows."""

    number: int  # 1, 2, … in this conversation


@dataclass(frozen=True)
class Words:
    item_id: str
    text: str  # append it


@dataclass(frozen=True)
class Sound:
    item_id: str
    pcm16: bytes  # int16 LE, mono, 16 kHz; follows on without a gap
    first_sample: int  # position of its first sample in the answer


@dataclass(frozen=True)
class Answered:
    """An answer is over."""

    status: str  # "completed", "cancelled", "incomplete" or "failed"
    reason: str = ""  # "client_cancelled", "turn_detected", "max_output_tokens", "connection_lost" or an error's code
    timing: dict[str, float] = field(default_factory=dict)  # ms after the question's end: first_audio_ms, …


@dataclass(frozen=True)
class Resumed:
    """The line was lost, and is there again."""

    session_id: str
    remembers: bool  # False: the earlier session is gone, and this new one knows nothing of it
    unanswered: bool  # a question was on its way, or being answered: ask again


@dataclass(frozen=True)
class Problem:
    """What was asked for did not happen; the session goes on."""

    code: str
    message: str


@dataclass(frozen=True)
class Other:
    """Every other event, as it came."""

    type: str
    fields: dict[str, Any]


LiveEvent = Heard | SpeechStarted | Started | Words | Sound | Answered | Resumed | Problem | Other


# --- a conversation ---------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def connect_realtime(
    url: str,
    api_key: str | None = None,
    *,
    settings: dict[str, Any] | None = None,
    adaptor: str | None = None,
    attempts: int = ATTEMPTS,
) -> AsyncIterator["RealtimeSession"]:
    """A conversation with the controller at `url` ("http://127.0.0.1:8000"), by push-to-talk unless `settings` (fields
    of docs/protocol.md's session) switch turn detection on, heard by an `adaptor` of the checkpoint's if one is named.
    A full or restarting controller is asked `attempts` times, after longer and longer waits. Raises RealtimeError."""
    chosen = {"omni": {"adaptor": adaptor}} if adaptor else {}
    session = RealtimeSession(url, api_key, _merged(settings or {}, chosen), attempts)
    try:
        await session.open()
        yield session
    finally:
        await session.close()


class RealtimeSession:
    """Made by connect_realtime. One task iterates; any task may send."""

    def __init__(self, url: str, api_key: str | None, settings: dict[str, Any], attempts: int) -> None:
        scheme, _, rest = url.rstrip("/").partition("://")
        if scheme not in ("http", "https", "ws", "wss") or not rest:
            raise RealtimeError("bad_url", f"{url!r} is no controller's address. Give one like http://127.0.0.1:8000.")
        self._url = f"{'wss' if scheme in ('https', 'wss') else 'ws'}://{rest}/v1/realtime"
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._attempts = attempts
        self._settings = _merged(_merged(PUSH_TO_TALK, settings), {"omni": {"binary_audio": True}})
        self._settings = _merged(self._settings, _rates(RATE))
        self._line: ClientConnection | None = None
        self._closed = False
        self._token = ""
        self._told: RealtimeError | None = None  # the newest error event: the cause, when a close follows
        self._unanswered = False
        self._answering = False
        self._number = 0  # of the newest answer
        self._silenced = 0  # answers up to this one are not to be heard
        self.id = ""
        self.item_id = ""  # of the newest answer
        self.received_ms = 0.0  # of its sound

    async def open(self) -> None:
        await self._connect()

    async def close(self) -> None:
        self._closed = True
        await self._hang_up()

    # --- saying -------------------------------------------------------------------------------------------------------

    async def update(self, **settings: Any) -> None:
        """Change fields of the session (docs/protocol.md). The rate stays 16 kHz. A refusal comes as a Problem."""
        self._settings = _merged(_merged(self._settings, settings), _rates(RATE))
        await self._send("session.update", session={"type": "realtime", **settings})

    async def ask(self, pcm16: bytes) -> None:
        """A whole question by push-to-talk: int16 LE, mono, 16 kHz. Its answer comes as events."""
        line = self._line  # a line that breaks meanwhile takes nothing of the rest: no half of a question is asked
        self._unanswered = True
        for start in range(0, len(pcm16), PORTION_BYTES):
            await self._put(line, pcm16[start : start + PORTION_BYTES])
        await self._put(line, _event("input_audio_buffer.commit"))
        await self._put(line, _event("response.create"))

    async def append(self, pcm16: bytes) -> None:
        """Sound of a microphone, as it comes: int16 LE, mono, 16 kHz."""
        self._unanswered = True
        await self._put(self._line, pcm16)

    async def commit(self) -> None:
        """What was appended is the question: answer it."""
        await self._send("input_audio_buffer.commit")
        await self._send("response.create")

    async def clear(self) -> None:
        """What was appended is forgotten."""
        self._unanswered = self._answering
        await self._send("input_audio_buffer.clear")

    async def played(self, item_id: str, milliseconds: float) -> None:
        """So much of an answer was heard by now: say it a few times a second."""
        await self._send("omni.playback", item_id=item_id, played_ms=milliseconds)

    async def interrupt(self, heard_ms: float | None = None) -> None:
        """The running answer ends, and nothing more of it comes; of its sound, only `heard_ms` will be remembered."""
        self._silenced, item_id = self._number, self.item_id
        await self._send("output_audio_buffer.clear")
        if heard_ms is not None and item_id:
            end = int(min(max(0.0, heard_ms), self.received_ms))
            await self._send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=end)

    async def _send(self, kind: str, **fields: Any) -> None:
        await self._put(self._line, _event(kind, **fields))

    async def _put(self, line: ClientConnection | None, message: str | bytes) -> None:
        """On a line that has broken nothing is sent: the loop over the events connects again, and tells."""
        if self._closed:
            raise RealtimeError("session_closed", "This conversation is closed. Connect again.")
        if line is None or line is not self._line:
            return
        with contextlib.suppress(ConnectionClosed):
            try:
                async with asyncio.timeout(SEND_SECONDS):
                    await line.send(message)
            except TimeoutError:
                line.transport.abort()

    # --- hearing ------------------------------------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[LiveEvent]:
        return self.events()

    async def events(self) -> AsyncGenerator[LiveEvent]:
        """Until the controller has ended the session for want of speech, or it was closed here."""
        while not self._closed:
            line = self._line
            if line is None:
                for event in await self._recover():
                    yield event
                continue
            try:
                message = await line.recv()
            except ConnectionClosed as exc:
                if self._closed or self._is_over(exc):
                    return
                await self._hang_up()
                continue
            for event in self._read(message):
                yield event

    def _is_over(self, exc: ConnectionClosed) -> bool:
        """False: the line broke. Raises the error that ended the session."""
        code = exc.rcvd.code if exc.rcvd is not None else None
        if code in BROKEN:
            return False
        self._closed = True
        if code == ENDED:
            return True
        reason = exc.rcvd.reason if exc.rcvd is not None else ""
        raise self._told or RealtimeError(reason or "closed", f"The controller closed the conversation ({code}).")

    async def _recover(self) -> list[LiveEvent]:
        lost: list[LiveEvent] = [Answered("incomplete", "connection_lost")] if self._answering else []
        unanswered, self._unanswered, self._answering = self._unanswered, False, False
        remembers = await self._connect()
        return [*lost, Resumed(self.id, remembers, unanswered)]

    def _read(self, message: str | bytes) -> Iterator[LiveEvent]:
        if isinstance(message, bytes):
            number, first_sample, _ = FRAME_HEADER.unpack_from(message)
            pcm16 = message[FRAME_HEADER.size :]
            if number != self._number or number <= self._silenced:
                return  # of an answer that was interrupted
            self.received_ms = 1000 * (first_sample + len(pcm16) / SAMPLE_BYTES) / RATE
            yield Sound(self.item_id, pcm16, first_sample)
            return
        fields = json.loads(message)
        match fields.get("type"):
            case "input_audio_buffer.committed":
                yield Heard(fields["item_id"])
            case "input_audio_buffer.speech_started":
                yield SpeechStarted(fields["item_id"])
            case "response.created":
                self._number, self._answering = fields["response"]["omni"]["number"], True
                self.item_id, self.received_ms = "", 0.0
                yield Started(self._number)
            case "response.output_item.added":
                self.item_id = fields["item"]["id"]
            case "response.output_audio_transcript.delta" | "response.output_text.delta":
                if self._number > self._silenced:
                    yield Words(fields["item_id"], fields["delta"])
            case "response.done":
                self._answering = self._unanswered = False
                yield _answered(fields["response"])
            case "omni.session.token":
                self._token = fields["token"]
            case "error":
                self._told = _told(fields["error"])
                yield Problem(self._told.code, self._told.message)
            case kind:
                yield Other(str(kind), fields)

    # --- the line -----------------------------------------------------------------------------------------------------

    async def _connect(self) -> bool:
        """A line with an open session. False: the session before could not be resumed. Raises RealtimeError."""
        wait = FIRST_WAIT
        for attempt in range(1, self._attempts + 1):
            try:
                return await self._attempt()
            except _TryAgain as exc:
                if attempt == self._attempts:
                    raise RealtimeError(exc.code, f"{exc.message} Tried {attempt} times; try again later.") from exc
            await asyncio.sleep(wait * random.uniform(0.75, 1.25))  # not all clients of a restart at once
            wait = min(2 * wait, LONGEST_WAIT)
        raise RealtimeError("bad_attempts", f"attempts is {self._attempts}; it must be 1 or more.")

    async def _attempt(self) -> bool:
        try:
            self._line = await connect(
                self._url,
                additional_headers=self._headers,
                compression=None,  # PCM does not shrink
                proxy=None,  # a cluster is named by its own address
                open_timeout=CONNECT_SECONDS,
                close_timeout=CLOSE_SECONDS,
                max_size=None,  # the controller is trusted; its items may be long
            )
        except InvalidStatus as exc:
            raise _refused(exc) from exc
        except (OSError, TimeoutError, InvalidHandshake) as exc:
            raise _TryAgain("unreachable", f"No controller answers at {self._url}: {exc or 'timeout'}.") from exc
        opened = False
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                remembers = await self._begin()
            opened = True
            return remembers
        except ConnectionClosed as exc:
            code = exc.rcvd.code if exc.rcvd is not None else None
            told = self._told or RealtimeError("closed", f"The controller closed the line ({code}).")
            if code in BROKEN:
                raise _TryAgain(told.code, told.message) from exc
            raise told from exc
        except TimeoutError as exc:
            raise _TryAgain("no_answer", f"No session came within {OPEN_SECONDS:g} s.") from exc
        finally:
            if not opened:
                await self._hang_up()

    async def _begin(self) -> bool:
        """A new session, or the one from before in its place."""
        token, session_id = self._token, self.id
        created = await self._until("session.created")
        remembers = True
        fresh = (await self._until("omni.session.token"))["token"]
        if token:
            await self._send("omni.session.resume", session_id=session_id, token=token)
            answer = await self._until("session.updated", "error")
            if answer["type"] == "error" and answer["error"].get("code") == STORE_LOST:
                told = _told(answer["error"])  # away, which is not gone: the token is kept for the next attempt
                raise _TryAgain(told.code, told.message)
            remembers = answer["type"] == "session.updated"
            if remembers:
                created, fresh = answer, (await self._until("omni.session.token"))["token"]
                await self._send("omni.session.acknowledge")
        self._token, self.id, self._told = fresh, created["session"]["id"], None
        self._number = self._silenced = 0  # they count anew on every socket
        self.item_id, self.received_ms = "", 0.0
        await self._send("session.update", session={"type": "realtime", **self._settings})
        answer = await self._until("session.updated", "error")
        if answer["type"] == "error":
            raise _told(answer["error"])
        return remembers

    async def _until(self, *kinds: str) -> dict[str, Any]:
        assert self._line is not None, "a line is open"
        while True:
            message = await self._line.recv()
            fields = json.loads(message) if isinstance(message, str) else {}
            if fields.get("type") == "error":
                self._told = _told(fields["error"])
            if fields.get("type") in kinds:
                return fields

    async def _hang_up(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            await line.close()


def _event(kind: str, **fields: Any) -> str:
    return json.dumps({"type": kind, **fields})


def _rates(rate: int) -> dict[str, Any]:
    audio_format = {"format": {"type": "audio/pcm", "rate": rate}}
    return {"audio": {"input": audio_format, "output": audio_format}}


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Objects field by field; everything else is replaced."""
    both = {name: _merged(old[name], new[name]) for name in old.keys() & new.keys() if _objects(old[name], new[name])}
    return {**old, **new, **both}


def _objects(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def _answered(response: dict[str, Any]) -> Answered:
    details = response.get("status_details") or {}
    reason = details.get("reason") or (details.get("error") or {}).get("code") or ""
    return Answered(response["status"], reason, (response.get("omni") or {}).get("timing") or {})


def _told(error: dict[str, Any]) -> RealtimeError:
    return RealtimeError(str(error.get("code")), str(error.get("message")))


def _refused(exc: InvalidStatus) -> RealtimeError | _TryAgain:
    status = exc.response.status_code
    try:
        error = _told(json.loads(exc.response.body or b"")["error"])
    except (ValueError, KeyError, TypeError):
        error = RealtimeError("bad_response", f"HTTP {status}: is this a controller that holds live conversations?")
    if status == 401:
        return RealtimeError(error.code, f"{error.message} Set OMNI_API_KEY to the cluster's key.")
    return _TryAgain(error.code, error.message) if status in (429, 502, 503, 504) else error
