"""One live conversation: client events in, server events out, and which of them has to do with which.

    dialogue = Dialogue(registry, hearing, sessions, post=socket.post, withdraw=socket.withdraw, room=socket.room)
    await dialogue.open()                    # session.created, and the token that resumes the session
    await dialogue.hear(message)             # str: an event; bytes: audio. What is wrong with it becomes an error event
    await dialogue.close("The client left.") # every answer has given back what it held

    append ─→ Listening ─┬ Started: the running answer stops; what was said is read ahead ┐
                         ├ Paused:  an answer begins, silently                            ├─→ Responding ─→ Saying
                         ├ Resumed: it is dropped                                         │
                         └ Stopped: the question is complete; the answer is released      ┘

Knows the protocol's rules; knows no socket (live_socket.py), no sound (listening.py), no answer (responding.py).
"""

from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import ValidationError

from omni.audio.resample import Resampler
from omni.audio.wav import SAMPLE_RATE
from omni.serve import realtime_events as events
from omni.serve.conversation import Conversation, Item, new_id
from omni.serve.errors import BadRequest, OmniError
from omni.serve.hearing import Hearing
from omni.serve.keeper import Keeper
from omni.serve.listening import Listening, given_speech
from omni.serve.realtime_settings import ServerVad, Settings
from omni.serve.registry import Registry
from omni.serve.responding import Responding
from omni.serve.saying import Saying
from omni.serve.sessions import Session, Sessions
from omni.serve.turn_taking import Paused, Resumed, Signal, Started, Stopped
from omni.serve.uploads import from_base64, to_base64


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
        self.config = registry.config
        self.settings = Settings()
        self.left = False  # a draining controller has nothing left to say here
        self._draining = False
        self._when_leaving: Callable[[], None] = lambda: None
        self._sessions, self._hearing = sessions, hearing
        self._keeper: Keeper | None = None
        self._cause: str | None = None  # event_id of the client event at work
        self._saying = Saying(post=post, withdraw=withdraw, room=room, changed=self._changed)
        self._listening = Listening(
            hearing, self.config, self.settings, registry.clock, act=self._act_on, complain=self.complain
        )
        self._responding = Responding(registry, self._saying, self.settings, when_ended=self._leave_if_done)

    # --- the outside --------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        session, token = await self._sessions.open()
        self._adopt(session)
        self._saying.say("session.created", session=self._shown_session())
        self._tell_token(token)

    @property
    def session(self) -> Session:
        return self._keeper_now.session

    @property
    def _keeper_now(self) -> Keeper:
        assert self._keeper is not None, "the dialogue is open"
        return self._keeper

    @property
    def conversation(self) -> Conversation:
        return self.session.conversation

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
        self._saying.complain(exc, event_id)

    def drain(self) -> None:
        """The controller shuts down: a running answer may end, then the socket closes."""
        self._draining = True
        self._responding.drain()
        self._leave_if_done()

    def when_leaving(self, callback: Callable[[], None]) -> None:
        """Called once a draining controller has nothing left to say here."""
        self._when_leaving = callback
        if self.left:
            callback()

    async def close(self, reason: str) -> None:
        await self._responding.close(reason)
        if self._keeper is not None:
            self._responding.remember_the_last_answer()
            self._changed()
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
                self._responding.create(event.response or {})
            case events.ResponseCancel():
                self._responding.cancel(event.response_id)
            case events.OutputClear():
                self._responding.interrupt("client_cancelled")
            case events.ItemCreate():
                await self._create_item(event.item, event.previous_item_id)
            case events.ItemRetrieve():
                self._retrieve(event.item_id)
            case events.ItemDelete():
                self._delete(event.item_id)
            case events.ItemTruncate():
                self._responding.truncate(event.item_id, event.audio_end_ms)
            case events.SessionResume():
                await self._resume(event.session_id, event.token)
            case events.SessionAcknowledge():
                self._keeper_now.acknowledged()  # beside: a slow store does not hold up what is heard
            case events.Playback():
                self._responding.played(event.item_id, event.played_ms / 1000)
            case _:
                raise AssertionError(f"nobody handles {event.type}")

    def _update(self, given: dict[str, Any]) -> None:
        settings = self.settings.updated(given)
        settings.check(self.config)
        self._change_settings(settings)

    def _change_settings(self, settings: Settings) -> None:
        self.settings = settings
        self._listening.change(settings)
        self._responding.change(settings)
        if settings.turn_detection is None:
            self._responding.drop_guess("Turn detection was switched off.")
        self._saying.say("session.updated", session=self._shown_session())

    # --- the session, beyond this socket ------------------------------------------------------------------------------

    async def _resume(self, session_id: str, token: str) -> None:
        """Go on with an earlier socket's session, in the place of the new one."""
        if self.conversation.items or self._responding.has_run or not self._listening.is_untouched:
            raise BadRequest("A session is resumed before anything is said.", code="session_in_use")
        session, new_token = await self._sessions.resume(session_id, token)
        await self._keeper_now.discard()
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
        self._keeper = Keeper(self._sessions, session, taken=lambda: self._when_leaving())
        self._responding.adopt(session)

    def _tell_token(self, token: str) -> None:
        expires = int(self._sessions.expiry)
        self._saying.say("omni.session.token", session_id=self.session.id, token=token, expires_in=expires)

    # --- items --------------------------------------------------------------------------------------------------------

    async def _create_item(self, given: events.GivenItem, previous: str | None) -> None:
        item = await self._as_item(given)
        self.conversation.add(item, previous)
        self._responding.outdate()
        self._tell_item(item)

    async def _as_item(self, given: events.GivenItem) -> Item:
        item_id = given.id or new_id()
        spoken = [part for part in given.content if part.audio is not None]
        if spoken:
            if len(given.content) > 1 or given.role != "user":
                raise BadRequest("Audio is a user's only part.", code="unsupported_value", param="item.content")
            data = from_base64(spoken[0].audio or "", "item.content.0.audio")
            pcm16 = await self._hearing.run(given_speech, data, self.settings.rate_in, self.config)
            return Item.speech(pcm16, item_id)
        text = "".join(part.text or part.transcript or "" for part in given.content)
        if not text.strip():
            raise BadRequest("The item has neither text nor audio.", code="invalid_value", param="item.content")
        if len(text) > self.config.max_text_chars:
            limit = self.config.max_text_chars
            raise BadRequest(f"The item has more than {limit} characters.", code="too_long", param="item.content")
        return Item.written(given.role, text, item_id)

    def _retrieve(self, item_id: str) -> None:
        item = self.conversation.find(item_id)
        shown = events.shown_item(item)
        if item.pcm16 is not None:
            pcm16 = Resampler(SAMPLE_RATE, self.settings.rate_in)(item.pcm16, last=True)
            shown["content"][0]["audio"] = to_base64(pcm16)
        self._saying.say("conversation.item.retrieved", item=shown)

    def _delete(self, item_id: str) -> None:
        if self.conversation.find(item_id).status == "in_progress":
            raise BadRequest(f"The item {item_id!r} is being spoken: cancel its response.", code="item_in_progress")
        self.conversation.delete(item_id)
        self._responding.outdate()
        self._saying.say("conversation.item.deleted", item_id=item_id)

    def _tell_item(self, item: Item) -> None:
        shown, previous = events.shown_item(item), self.conversation.previous(item.id)
        self._saying.say("conversation.item.added", item=shown, previous_item_id=previous)
        self._saying.say("conversation.item.done", item=shown, previous_item_id=previous)

    # --- what is heard ------------------------------------------------------------------------------------------------

    async def _append(self, pcm16: bytes) -> None:
        begins = self.settings.turn_detection is None and self._listening.is_empty
        await self._listening.append(pcm16)
        if begins and not self._listening.is_empty:  # by push-to-talk, somebody speaks as soon as there is sound
            self._responding.read_ahead()

    def _act_on(self, signal: Signal) -> None:
        vad = self.settings.turn_detection
        assert vad is not None, "turns are taken where they are detected"
        match signal:
            case Started(sample):
                self._speech_starts(sample, vad)
            case Paused(sample):
                if vad.create_response:
                    self._responding.guess(self._listening.question(sample), self._listening.bytes_in)
            case Resumed():
                self._responding.drop_guess("The speaker went on.")
            case Stopped(sample):
                self._speech_stops(sample, vad)

    def _speech_starts(self, sample: int, vad: ServerVad) -> None:
        if vad.interrupt_response:
            self._responding.silence()
        item_id = self._listening.question_id
        self._saying.say("input_audio_buffer.speech_started", audio_start_ms=_ms(sample), item_id=item_id)
        if vad.interrupt_response:
            self._responding.interrupt("turn_detected")
            self._responding.remember_what_was_heard()
        if vad.create_response:
            self._responding.read_ahead()

    def _speech_stops(self, sample: int, vad: ServerVad) -> None:
        item_id = self._listening.question_id
        self._saying.say("input_audio_buffer.speech_stopped", audio_end_ms=_ms(sample), item_id=item_id)
        bytes_in = self._listening.bytes_in
        question = self._listening.take(sample)
        try:
            self._commit(question)
            if vad.create_response:
                self._responding.question_ended(question, bytes_in)
        finally:
            self._responding.drop_guess("Another answer is given.")

    def _commit_by_hand(self) -> None:
        item = self._listening.commit()
        self._responding.drop_guess("The question was committed.")
        self._commit(item)

    def _clear(self) -> None:
        self._responding.drop_guess("The question was cleared.")
        self._listening.clear()
        self._saying.say("input_audio_buffer.cleared")

    def _commit(self, item: Item) -> None:
        self.conversation.add(item)
        previous = self.conversation.previous(item.id)
        self._saying.say("input_audio_buffer.committed", item_id=item.id, previous_item_id=previous)
        self._tell_item(item)
        if self.settings.audio.input.transcription is not None:
            message = "Nothing here transcribes what the user says; the model hears it as it is."
            error = {"type": "invalid_request_error", "code": "transcription_unavailable", "message": message}
            kind = "conversation.item.input_audio_transcription.failed"
            self._saying.say(kind, item_id=item.id, content_index=0, error=error)

    def _changed(self) -> None:
        if self._keeper is not None:
            self._keeper.session.settings = self.settings.model_dump()
            self._keeper.changed()

    def _shown_session(self) -> dict[str, Any]:
        return self.settings.shown(self.config) | {"id": self.session.id}

    def _leave_if_done(self) -> None:
        if self._draining and not self._responding.is_answering and not self.left:
            self.left = True
            self._when_leaving()


def _ms(sample: int) -> int:
    return sample * 1000 // SAMPLE_RATE
