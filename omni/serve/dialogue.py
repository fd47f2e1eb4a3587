"""One live conversation: client events in, server events out, answers begun, held back, released and interrupted.

    dialogue = Dialogue(registry, hearing, sessions, post=socket.post, withdraw=socket.withdraw, room=socket.room)
    await dialogue.open()                    # session.created, and the token that resumes the session
    await dialogue.hear(message)             # str: an event; bytes: audio. What is wrong with it becomes an error event
    await dialogue.close("The client left.") # every answer has given back what it held

    append ─→ InputBuffer ─→ VoiceActivity ─→ TurnTaking ─┬ Started: the running answer stops
                                                          ├ Paused:  an answer begins, silently
                                                          ├ Resumed: it is dropped
                                                          └ Stopped: the question is complete; the answer is released

Knows the protocol's rules; knows no socket (live_socket.py) and not how an answer is made (answering.py).
"""

import dataclasses
import logging
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from omni.audio.resample import Resampler
from omni.audio.vad import WINDOW, VoiceActivity
from omni.audio.wav import SAMPLE_RATE, SILENCE, from_pcm16
from omni.serve import realtime_events as events
from omni.serve.alignment import Alignment
from omni.serve.allowance import Allowance
from omni.serve.answering import Answering
from omni.serve.conversation import Conversation, Item, new_id
from omni.serve.errors import BadAudio, BadRequest, Cancelled, Draining, OmniError, RateLimited
from omni.serve.hearing import Hearing
from omni.serve.input_buffer import SAMPLE_BYTES, InputBuffer
from omni.serve.keeper import Keeper
from omni.serve.protocol import AudioDelta, Done, Failed, TextDelta
from omni.serve.realtime_response import Outgoing, Response
from omni.serve.realtime_settings import Settings
from omni.serve.registry import RETRY_SECONDS, Registry, failure
from omni.serve.sessions import Session, Sessions
from omni.serve.turn_taking import Paused, Resumed, Signal, Started, Stopped, TurnTaking
from omni.serve.turns_api import new_seed
from omni.serve.uploads import from_base64, to_base64
from omni.serve.window import Window

logger = logging.getLogger(__name__)

CHANGES = {  # what is kept of a session is new whenever one of these is said
    "session.updated",
    "conversation.item.done",
    "conversation.item.deleted",
    "conversation.item.truncated",
    "response.done",
}
LEAST_AUDIO = 0.1  # seconds; less is no question
FASTEST = 1.25  # seconds of sound a second, once the burst is used up


@dataclasses.dataclass
class Guess:
    """An answer begun in a pause, to a question that may go on."""

    answering: Answering
    question: tuple[int, int, int]  # the history's version, and the question's first and last sample


class Dialogue:
    def __init__(
        self,
        registry: Registry,
        hearing: Hearing,
        sessions: Sessions,
        *,
        post: Callable[..., None],
        withdraw: Callable[[Any], float],
        room: Callable[[], Awaitable[None]],
    ) -> None:
        self.registry, self.config = registry, registry.config
        self.settings = Settings()
        self.conversation = Conversation(Window.of(registry.config))  # the session's, once it is open
        self.left = False  # a draining controller has nothing left to say here
        self._draining = False
        self._when_leaving: Callable[[], None] = lambda: None
        self._sessions = sessions
        self._keeper: Keeper | None = None
        self._hearing, self._post, self._withdraw, self._room = hearing, post, withdraw, room
        self._conversation_id = f"conv_{uuid.uuid4().hex[:24]}"
        self._num_events = self._num_responses = 0
        self._cause: str | None = None  # event_id of the client event at work
        self._allowance = Allowance(self.config.audio_burst, FASTEST)
        self._buffer = InputBuffer(self.settings.rate_in)
        self._ear: VoiceActivity | None = None  # made when something is heard: most sockets only wait
        self._taking: TurnTaking | None = None
        self._question_start = 0  # sample, while somebody speaks
        self._question_id = ""
        self._version = 0  # of what an answer depends on, besides the question
        self._guess: Guess | None = None
        self._answering: Answering | None = None
        self._response: Response | None = None
        self._last: tuple[str, Answering] | None = None  # the newest answer's item: its playback may go on
        self._answer_next = False  # a question came while an answer ran that it does not interrupt
        self._running: set[Answering] = set()  # those that have not yet given everything back

    # --- the outside --------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        session, token = await self._sessions.open()
        self._adopt(session)
        self._say("session.created", session=self._shown_session())
        self._tell_token(token)

    @property
    def session(self) -> Session:
        assert self._keeper is not None, "the dialogue is open"
        return self._keeper.session

    @property
    def is_taken(self) -> bool:
        """Another socket has resumed the session."""
        return self._keeper is not None and self._keeper.is_taken

    async def hear(self, message: str | bytes) -> None:
        """One message of the client. What the client did wrong is said, not raised."""
        self._cause = None
        try:
            if isinstance(message, bytes):
                await self._append(message)
            else:
                await self._handle(message)
        except OmniError as exc:
            self.complain(exc, self._cause)

    def complain(self, exc: BaseException, event_id: str | None = None) -> None:
        """An error event."""
        fields = events.error_fields(failure(exc), getattr(exc, "param", None), event_id)
        self._say("error", error=fields)

    def drain(self) -> None:
        """The controller shuts down: a running answer may end, then the socket closes."""
        self._draining = True
        self._drop_guess("The controller is shutting down.")
        self._leave_if_done()

    def when_leaving(self, callback: Callable[[], None]) -> None:
        """Called once a draining controller has nothing left to say here."""
        self._when_leaving = callback
        if self.left:
            callback()

    async def close(self, reason: str) -> None:
        self._drop_guess(reason)
        for answering in list(self._running):
            answering.stop(Cancelled(reason))
        for answering in list(self._running):
            await answering.ended()
        if self._keeper is not None:
            self._remember_the_last_answer()
            await self._keeper.close()

    # --- client events ------------------------------------------------------------------------------------------------

    async def _handle(self, text: str) -> None:
        self._cause = events.event_id_of(text) if '"event_id"' in text else None
        event = events.parse(text)
        match event:
            case events.Append():
                await self._append(from_base64(event.audio, "audio"))
            case events.Commit():
                self._commit_by_hand()
            case events.Clear():
                self._clear()
            case events.SessionUpdate():
                self._update(event.session)
            case events.ResponseCreate():
                self._create_response(event.response or {})
            case events.ResponseCancel():
                self._cancel_response(event.response_id)
            case events.OutputClear():
                self._interrupt("client_cancelled")
            case events.ItemCreate():
                await self._create_item(event.item, event.previous_item_id)
            case events.ItemRetrieve():
                self._retrieve(event.item_id)
            case events.ItemDelete():
                self._delete(event.item_id)
            case events.ItemTruncate():
                self._truncate(event.item_id, event.audio_end_ms)
            case events.SessionResume():
                await self._resume(event.session_id, event.token)
            case events.Playback():
                self._playback(event.item_id, event.played_ms)
            case _:
                raise AssertionError(f"nobody handles {event.type}")

    def _update(self, given: dict[str, Any]) -> None:
        settings = self.settings.updated(given)
        settings.check(self.config)
        self._change_settings(settings)

    def _change_settings(self, settings: Settings) -> None:
        before, self.settings = self.settings, settings
        self._version += 1
        if settings.rate_in != before.rate_in:
            self._buffer.flush()
            self._buffer.change_rate(settings.rate_in)
        if settings.turn_detection is None:
            self._ear = self._taking = None
            self._drop_guess("Turn detection was switched off.")
        elif self._taking is not None:
            self._taking.settings = settings.taking(self.config.pause_ms)
        self._say("session.updated", session=self._shown_session())

    # --- the session, beyond this socket ------------------------------------------------------------------------------

    async def _resume(self, session_id: str, token: str) -> None:
        """Go on with an earlier socket's session, in the place of the new one."""
        if self.conversation.items or self._running or self._buffer.end:
            raise BadRequest("A session is resumed before anything is said.", code="session_in_use")
        session, new_token = await self._sessions.resume(session_id, token)
        assert self._keeper is not None, "the dialogue is open"
        await self._keeper.discard()
        self._adopt(session)
        try:
            settings = Settings.model_validate(session.settings)
            settings.check(self.config)
        except (ValidationError, BadRequest):  # of another version, or of a controller with other limits
            settings = Settings()
        self._change_settings(settings)
        for item in self.conversation:
            self._tell_item(item)
        self._tell_token(new_token)

    def _adopt(self, session: Session) -> None:
        self.conversation = session.conversation
        self._keeper = Keeper(self._sessions, session, taken=lambda: self._when_leaving())

    def _tell_token(self, token: str) -> None:
        expires = int(self._sessions.expiry)
        self._say("omni.session.token", session_id=self.session.id, token=token, expires_in=expires)

    def _remember_the_last_answer(self) -> None:
        """The socket is closed: of an answer that was under way, or still played, what was heard stays."""
        answering, response = self._answering, self._response
        if answering is not None and response is not None:
            self._silence()
            samples = int(answering.heard_seconds * SAMPLE_RATE)
            self.conversation.end_answer(response.item.id, answering.alignment(), samples, completed=False)
            if not response.has_item:  # nothing was said: nothing to remember
                self.conversation.delete(response.item.id)
        else:
            self._remember_what_was_heard()
        self._changed()

    def _changed(self) -> None:
        if self._keeper is not None:
            self._keeper.session.settings = self.settings.model_dump()
            self._keeper.changed()

    # --- items --------------------------------------------------------------------------------------------------------

    async def _create_item(self, given: events.GivenItem, previous: str | None) -> None:
        item = await self._as_item(given)
        self.conversation.add(item, previous)
        self._version += 1
        self._tell_item(item)

    async def _as_item(self, given: events.GivenItem) -> Item:
        item_id = given.id or new_id()
        spoken = [part for part in given.content if part.audio is not None]
        if spoken:
            if len(given.content) > 1 or given.role != "user":
                raise BadRequest("Audio is a user's only part.", code="unsupported_value", param="item.content")
            data = from_base64(spoken[0].audio or "", "item.content.0.audio")
            return Item.speech(await self._hearing.run(self._checked_speech, data), item_id)
        text = "".join(part.text or part.transcript or "" for part in given.content)
        if not text.strip():
            raise BadRequest("The item has neither text nor audio.", code="invalid_value", param="item.content")
        if len(text) > self.config.max_text_chars:
            limit = self.config.max_text_chars
            raise BadRequest(f"The item has more than {limit} characters.", code="too_long", param="item.content")
        return Item.written(given.role, text, item_id)

    def _checked_speech(self, data: bytes) -> bytes:
        buffer = InputBuffer(self.settings.rate_in)
        seconds = len(data) / SAMPLE_BYTES / self.settings.rate_in
        if seconds > self.config.max_audio_seconds:
            raise self._too_long(seconds)
        buffer.append(data)
        buffer.flush()
        return checked(buffer.take(buffer.start, buffer.end))

    def _retrieve(self, item_id: str) -> None:
        item = self.conversation.find(item_id)
        shown = events.shown_item(item)
        if item.pcm16 is not None:
            pcm16 = Resampler(SAMPLE_RATE, self.settings.rate_in)(item.pcm16, last=True)
            shown["content"][0]["audio"] = to_base64(pcm16)
        self._say("conversation.item.retrieved", item=shown)

    def _delete(self, item_id: str) -> None:
        if self.conversation.find(item_id).status == "in_progress":
            raise BadRequest(f"The item {item_id!r} is being spoken: cancel its response.", code="item_in_progress")
        self.conversation.delete(item_id)
        self._version += 1
        self._say("conversation.item.deleted", item_id=item_id)

    def _truncate(self, item_id: str, audio_end_ms: int) -> None:
        self.conversation.truncate(item_id, audio_end_ms)
        self._version += 1
        self._say("conversation.item.truncated", item_id=item_id, content_index=0, audio_end_ms=audio_end_ms)

    def _playback(self, item_id: str, played_ms: float) -> None:
        if self._last is not None and self._last[0] == item_id:
            self._last[1].report(played_ms / 1000)
        else:
            self.conversation.find(item_id)  # an older answer's report comes late: no harm

    def _tell_item(self, item: Item) -> None:
        shown, previous = events.shown_item(item), self.conversation.previous(item.id)
        self._say("conversation.item.added", item=shown, previous_item_id=previous)
        self._say("conversation.item.done", item=shown, previous_item_id=previous)

    # --- what is heard ------------------------------------------------------------------------------------------------

    async def _append(self, pcm16: bytes) -> None:
        seconds = len(pcm16) / SAMPLE_BYTES / self.settings.rate_in
        if self.settings.turn_detection is None and self._buffer.seconds + seconds > self.config.max_audio_seconds:
            raise self._too_long(self._buffer.seconds + seconds)
        if len(pcm16) % SAMPLE_BYTES == 0 and not self._allowance.take(seconds, self.registry.clock()):
            raise RateLimited(
                f"Audio comes faster than it is spoken; {self.config.audio_burst:g} s may come at once. "
                f"This portion was not taken.",
                retry_after=RETRY_SECONDS,
                param="audio",
            )
        self._buffer.append(pcm16)
        if self.settings.turn_detection is not None:
            await self._listen(self.settings)

    async def _listen(self, settings: Settings) -> None:
        """Turn-taking, as far as whole windows have come."""
        if self._taking is None:
            self._taking = TurnTaking(settings.taking(self.config.pause_ms), self._buffer.start)
        taking = self._taking
        while (count := (self._buffer.end - taking.position) // WINDOW) > 0:
            start = taking.position
            samples = from_pcm16(self._buffer.peek(start, start + min(count, self._hearing.windows) * WINDOW))
            if self._ear is None:
                self._ear = await self._hearing.ear()
            for probability in await self._hearing.run(self._ear.push, samples):
                self._take(taking.hear(float(probability)))
                self._end_if_too_long(taking)
        if not taking.speaking:
            padding = settings.taking(0).prefix_padding_ms * SAMPLE_RATE // 1000
            self._buffer.forget(taking.position - padding)

    def _take(self, signal: Signal | None) -> None:
        try:
            self._act_on(signal)
        except OmniError as exc:  # the windows after it are still to be heard
            self.complain(exc)

    def _act_on(self, signal: Signal | None) -> None:
        match signal:
            case Started(sample):
                self._speech_starts(sample)
            case Paused(sample):
                self._guess_the_end(sample)
            case Resumed():
                self._drop_guess("The speaker went on.")
            case Stopped(sample):
                self._speech_stops(sample)

    def _speech_starts(self, sample: int) -> None:
        vad = self.settings.turn_detection
        assert vad is not None, "speech starts where it is looked for"
        self._question_start, self._question_id = sample, new_id()
        if vad.interrupt_response:
            self._silence()
        self._say("input_audio_buffer.speech_started", audio_start_ms=_ms(sample), item_id=self._question_id)
        if vad.interrupt_response:
            self._interrupt("turn_detected")
            self._remember_what_was_heard()

    def _speech_stops(self, sample: int) -> None:
        vad = self.settings.turn_detection
        assert vad is not None, "speech stops where it is looked for"
        self._say("input_audio_buffer.speech_stopped", audio_end_ms=_ms(sample), item_id=self._question_id)
        pcm16, bytes_in = self._take_question(sample)
        try:
            self._commit(Item.speech(pcm16, self._question_id))
            if vad.create_response:
                if self._answering is None:
                    begun = self._guessed(sample)
                    self._answer(self.settings, begun, bytes_in)
                    if begun is not None:
                        self._guess = None  # it is no guess any more
                else:
                    self._answer_next = True
        finally:
            self._drop_guess("Another answer is given.")

    def _end_if_too_long(self, taking: TurnTaking) -> None:
        """A question has a limit: what was said is answered, and the speaker is told."""
        if taking.speaking and taking.position - self._question_start >= self.config.max_audio_seconds * SAMPLE_RATE:
            taking.stop()
            limit = self.config.max_audio_seconds
            message = f"You have spoken for {limit:g} s, the limit: this is answered, what follows is another question."
            self.complain(BadAudio(message, code="audio_too_long"))
            self._speech_stops(taking.position)

    def _commit_by_hand(self) -> None:
        if self.settings.turn_detection is None:
            start, end, item_id = self._buffer.start, None, new_id()
        elif self._taking is not None and self._taking.speaking:
            start, end, item_id = self._question_start, self._taking.position, self._question_id
        else:
            raise BadRequest("Nobody speaks: there is nothing to commit.", code="input_audio_buffer_commit_empty")
        if end is None:
            seconds = self._buffer.seconds
            if seconds < LEAST_AUDIO:
                raise BadRequest(
                    f"The buffer has {1000 * seconds:.0f} ms; a question needs {1000 * LEAST_AUDIO:.0f}.",
                    code="input_audio_buffer_commit_empty",
                )
            self._buffer.flush()
            end = self._buffer.end
        pcm16 = checked(self._buffer.peek(start, end))
        self._buffer.take(start, end)
        if self._taking is not None:
            self._taking.stop()
        self._drop_guess("The question was committed.")
        self._commit(Item.speech(pcm16, item_id))

    def _clear(self) -> None:
        """What was appended is forgotten, a question that is being said too."""
        self._drop_guess("The question was cleared.")
        self._buffer.flush()
        self._buffer.forget(self._buffer.end)
        self._ear = self._taking = None
        self._say("input_audio_buffer.cleared")

    def _take_question(self, end: int) -> tuple[bytes, int]:
        bytes_in = self._buffer.bytes_in
        return self._buffer.take(self._question_start, end), bytes_in

    def _commit(self, item: Item) -> None:
        self.conversation.add(item)
        previous = self.conversation.previous(item.id)
        self._say("input_audio_buffer.committed", item_id=item.id, previous_item_id=previous)
        self._tell_item(item)
        if self.settings.audio.input.transcription is not None:
            message = "Nothing here transcribes what the user says; the model hears it as it is."
            error = {"type": "invalid_request_error", "code": "transcription_unavailable", "message": message}
            kind = "conversation.item.input_audio_transcription.failed"
            self._say(kind, item_id=item.id, content_index=0, error=error)

    def _too_long(self, seconds: float) -> OmniError:
        limit = self.config.max_audio_seconds
        message = f"The audio would last {seconds:.1f} s; the limit is {limit:g} s. This portion was not taken."
        return BadAudio(message, code="audio_too_long", param="audio")

    # --- answers ------------------------------------------------------------------------------------------------------

    def _create_response(self, given: dict[str, Any]) -> None:
        if self._answering is not None:
            raise BadRequest(
                f"The conversation has an answer already: {self._response.id if self._response else ''}. "
                f"Wait for its response.done, or cancel it.",
                code="conversation_already_has_active_response",
            )
        settings = self.settings.for_response(given)
        settings.check(self.config)
        last = [item for item in self.conversation if item.role != "system"]
        if not last or last[-1].role != "user":
            raise BadRequest("There is nothing to answer: the last item is not a user's.", code="nothing_to_answer")
        self._drop_guess("Another answer is given.")
        metadata = given.get("metadata")
        self._answer(settings, metadata=metadata if isinstance(metadata, dict) else None)

    def _answer(
        self,
        settings: Settings,
        begun: Answering | None = None,
        bytes_in: int = 0,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Answer the conversation, with the answer that was begun in its last pause or with a new one."""
        self._answer_next = False
        if self._draining:
            raise Draining("This controller is shutting down.", retry_after=RETRY_SECONDS)
        if begun is None:
            self._make_room()
        item = self.conversation.begin_answer()
        item.alignment = Alignment(spoken=settings.spoken)
        if begun is None:
            begun = self._begin(settings, (), bytes_in)
        self._num_responses += 1
        response = Response(self._event, self._num_responses, settings, self._conversation_id, item, metadata=metadata)
        self._answering, self._response, self._last = begun, response, (item.id, begun)
        self._send(response.begin())
        self._tell_limits()
        begun.release()

    def _begin(self, settings: Settings, pending: tuple[Item, ...], bytes_in: int = 0) -> Answering:
        """An answer to the conversation and what is pending; it says nothing until it is released."""
        messages = list(self.conversation.messages(pending))
        if settings.instructions:
            messages.insert(0, Item.written("system", settings.instructions).message())  # type: ignore[arg-type]
        first, largest = settings.chunks(self.config)
        answering = Answering(
            self.registry,
            self,
            messages,
            settings.sampling(self.config, new_seed()),
            spoken=settings.spoken,
            config=dataclasses.replace(self.config, first_chunk=first, chunk=largest),
            room=self._room,
            bytes_in=bytes_in,
            prefer=self.session.worker,
        )
        self._running.add(answering)
        answering.when_ended(self._running.discard)
        return answering

    def _make_room(self, pending: tuple[Item, ...] = ()) -> None:
        leaving = [item.id for item in self.conversation.make_room(pending)]
        for item_id in leaving:
            self._version += 1
            self._say("conversation.item.deleted", item_id=item_id)
        if leaving:
            self._say("omni.conversation.window", left=leaving, kept=len(self.conversation.items))

    def _guess_the_end(self, sample: int) -> None:
        """Somebody pauses: begin an answer to what was said so far."""
        vad = self.settings.turn_detection
        assert vad is not None, "a pause is heard where turns are detected"
        if not vad.create_response or self._draining or self._answering is not None:
            return
        pending = (Item.speech(self._buffer.peek(self._question_start, sample), self._question_id),)
        try:
            self._make_room(pending)
        except BadRequest:  # it will be told if the question ends so
            return
        answering = self._begin(self.settings, pending, self._buffer.bytes_in)
        answering.speculative = True
        self._guess = Guess(answering, (self._version, self._question_start, sample))

    def _guessed(self, sample: int) -> Answering | None:
        """The answer that was begun to just this, if it still stands."""
        guess = self._guess
        if guess is None or guess.answering.has_failed:
            return None
        if guess.question != (self._version, self._question_start, sample):
            return None
        return guess.answering

    def _drop_guess(self, reason: str) -> None:
        if self._guess is not None:
            self._guess.answering.stop(Cancelled(reason, code="speaker_went_on"))
            self._guess = None

    def _cancel_response(self, response_id: str | None) -> None:
        if self._response is None or response_id not in (None, self._response.id):
            raise BadRequest("There is no such answer to cancel.", code="response_cancel_not_active")
        self._interrupt("client_cancelled")

    def _silence(self) -> None:
        """No more sound of the running answer, from now on; its end is told by `_interrupt`."""
        answering = self._answering
        if answering is not None and not answering.over:
            message = "The answer was interrupted."
            answering.stop(Cancelled(message))
            answering.unsent = self._withdraw(answering)

    def _interrupt(self, reason: str) -> None:
        """End the running answer, if there is one; of it stays what was heard."""
        answering, response = self._answering, self._response
        if answering is None or response is None:
            return
        self._silence()
        heard = answering.heard_seconds
        self._end(answering, response, "cancelled", heard=heard, reason=reason)

    def _remember_what_was_heard(self) -> None:
        """Speech came over an answer that was made, but still played: a client that reports need not truncate."""
        if self._last is None or self._answering is not None:
            return
        item_id, answering = self._last
        played = answering.playback.reported
        if played is not None and played < answering.playback.seconds_sent and not answering.over:
            answering.over = True
            with suppress(BadRequest):  # it was deleted, or left the window
                self._truncate(item_id, int(1000 * played))

    # --- what an answer says (Listener) -------------------------------------------------------------------------------

    def said(self, answering: Answering, event: TextDelta | AudioDelta | Done) -> None:
        response = self._response
        if answering is not self._answering or response is None:
            return
        if not response.has_item:
            self._send(response.open_item(self.conversation.previous(response.item.id)))
        if isinstance(event, TextDelta):
            self._send(response.text(event.text))
        elif isinstance(event, AudioDelta):
            self._send_audio(answering, response.audio(event.pcm16))
        else:
            self._send_audio(answering, response.audio(b"", last=True))
            status, reason = ("incomplete", "max_output_tokens") if event.finish == "length" else ("completed", None)
            self._end(answering, response, status, reason=reason)

    def failed(self, answering: Answering, failed: Failed) -> None:
        response = self._response
        if answering is not self._answering or response is None:
            return
        self._withdraw(answering)
        self._end(answering, response, "failed", heard=answering.heard_seconds, failed=failed)

    def _end(
        self,
        answering: Answering,
        response: Response,
        status: str,
        *,
        heard: float | None = None,
        reason: str | None = None,
        failed: Failed | None = None,
    ) -> None:
        self._answering = self._response = None
        previous = self.conversation.previous(response.item.id)
        samples = None if heard is None else int(heard * SAMPLE_RATE)
        self.conversation.end_answer(
            response.item.id, answering.alignment(), samples, completed=status in ("completed", "incomplete")
        )
        if not response.has_item:  # nothing was said: nothing to remember
            self.conversation.delete(response.item.id)
        self._version += 1
        self.session.worker = answering.worker or self.session.worker
        timing = answering.timing()
        self._send(response.end(status, previous, reason, failed, answering.usage(), timing))
        self._leave_if_done()
        if self._answer_next and not self._draining:
            self._answer(self.settings)

    # --- saying -------------------------------------------------------------------------------------------------------

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._num_events += 1
        if kind in CHANGES:
            self._changed()
        return events.server_event(kind, f"event_{self._num_events}", **fields)

    def _say(self, kind: str, **fields: Any) -> None:
        self._post(self._event(kind, **fields))

    def _send(self, outgoing: Outgoing) -> None:
        for message in outgoing:
            self._post(message)

    def _send_audio(self, answering: Answering, outgoing: Outgoing) -> None:
        for message in outgoing:
            self._post(message, answering, answering.playback.last_sent)

    def _tell_limits(self) -> None:
        limit = self.config.max_turns
        remaining = max(0, limit - len(self.registry.answering))
        requests = {"name": "requests", "limit": limit, "remaining": remaining, "reset_seconds": 0.0}
        self._say("rate_limits.updated", rate_limits=[requests])

    def _shown_session(self) -> dict[str, Any]:
        return self.settings.shown(self.config) | {"id": self.session.id}

    def _leave_if_done(self) -> None:
        if self._draining and self._answering is None and not self.left:
            self.left = True
            self._when_leaving()


def checked(pcm16: bytes) -> bytes:
    """A question as it is, unless it is silent."""
    samples = from_pcm16(pcm16)
    if not len(samples) or float(abs(samples).max()) < SILENCE:
        raise BadAudio("The audio is silent (peak below -60 dBFS). Check the microphone.", code="audio_silent")
    return pcm16


def _ms(sample: int) -> int:
    return sample * 1000 // SAMPLE_RATE
