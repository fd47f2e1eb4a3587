"""The answers of one conversation: begun in a pause or at its end, said, paced, interrupted; one at a time.

    responding = Responding(registry, saying, settings, when_ended=leave_if_done)
    responding.adopt(session)                  # whose conversation is answered
    responding.read_ahead()                    # somebody begins to speak: a worker reads what was said before
    responding.guess(question)                 # an answer begins, silently: the question may be over
    responding.drop_guess("The speaker went on.")
    responding.question_ended(bytes_in)        # the guess is released, or an answer is begun
    responding.create({...})                   # response.create
    responding.interrupt("turn_detected")      # it stops; what was heard of it stays
    await responding.close("The client left.")

Knows when an answer begins and ends; knows no microphone (listening.py), and not how one is made (answering.py).
"""

import dataclasses
import uuid
from contextlib import suppress
from typing import Any, Protocol

from omni.audio.wav import SAMPLE_RATE
from omni.serve.alignment import Alignment
from omni.serve.answering import Answering
from omni.serve.conversation import Conversation, Item
from omni.serve.errors import BadRequest, Cancelled, Draining
from omni.serve.protocol import AudioDelta, Done, Failed, Message, TextDelta
from omni.serve.reading import Reading
from omni.serve.realtime_response import Response
from omni.serve.realtime_settings import Settings
from omni.serve.registry import RETRY_SECONDS, Registry
from omni.serve.saying import Saying
from omni.serve.sessions import Session
from omni.serve.turns_api import new_seed


@dataclasses.dataclass
class Guess:
    """An answer begun in a pause, to a question that may go on."""

    answering: Answering
    version: int  # of what else it depends on
    question: Item


class WhenEnded(Protocol):
    def __call__(self) -> None: ...


class Responding:
    def __init__(self, registry: Registry, saying: Saying, settings: Settings, when_ended: WhenEnded) -> None:
        self.registry, self.config = registry, registry.config
        self.settings = settings  # the session's
        self._saying, self._when_ended = saying, when_ended
        self._session: Session | None = None
        self._conversation_id = f"conv_{uuid.uuid4().hex[:24]}"
        self._num_responses = 0
        self._version = 0  # of what an answer depends on, besides the question
        self._guess: Guess | None = None
        self._answering: Answering | None = None
        self._response: Response | None = None
        self._last: tuple[str, Answering] | None = None  # the newest answer's item: its playback may go on
        self._answer_next = False  # a question came while an answer ran that it does not interrupt
        self._draining = False
        self._reading: Reading | None = None  # for the question that is being said
        self._readings: set[Reading] = set()  # those that have not yet given everything back
        self._running: set[Answering] = set()  # those that have not yet given everything back

    # --- what it depends on -------------------------------------------------------------------------------------------

    def adopt(self, session: Session) -> None:
        self._session = session

    @property
    def session(self) -> Session:
        assert self._session is not None, "the dialogue is open"
        return self._session

    @property
    def conversation(self) -> Conversation:
        return self.session.conversation

    def change(self, settings: Settings) -> None:
        self.settings = settings
        self.outdate()

    def outdate(self) -> None:
        """The conversation is another one now: an answer that has been begun answers what is no more."""
        self._version += 1

    @property
    def is_answering(self) -> bool:
        return self._answering is not None

    @property
    def has_run(self) -> bool:
        """Something is still under way, were it only to give back what it held."""
        return bool(self._running)

    def drain(self) -> None:
        """No new answers; a running one may end."""
        self._draining = True
        self._end_reading()
        self.drop_guess("The controller is shutting down.")

    async def close(self, reason: str) -> None:
        """Every answer has given back what it held."""
        self.drop_guess(reason)
        for answering in list(self._running):
            answering.stop(Cancelled(reason))
        self._end_reading()
        for answering in list(self._running):
            await answering.ended()
        for reading in list(self._readings):
            await reading.ended()

    # --- beginnings ---------------------------------------------------------------------------------------------------

    def create(self, given: dict[str, Any]) -> None:
        """What `response.create` asks for."""
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
        self.drop_guess("Another answer is given.")
        metadata = given.get("metadata")
        self._answer(settings, metadata=metadata if isinstance(metadata, dict) else None)

    def read_ahead(self) -> None:
        """A question begins: all that it comes after is read while it is said, where that is more than nothing."""
        if self._draining or self._answering is not None or not (self.conversation.items or self.settings.instructions):
            return
        self._end_reading()
        messages, deadline = self._messages(self.settings), self.config.queue_deadline
        adaptor = self.settings.adaptor
        self._reading = Reading(self.registry.cluster, messages, self.session.worker, deadline, adaptor)
        self._readings.add(self._reading)
        self._reading.when_ended(self._readings.discard)

    def _end_reading(self) -> str:
        """Which worker the question goes to."""
        reading, self._reading = self._reading, None
        if reading is not None:
            return reading.stop()
        return "" if self._session is None else self._session.worker  # a socket that is refused has no session

    def _messages(self, settings: Settings, pending: tuple[Item, ...] = ()) -> list[Message]:
        """What a worker is to read: instructions, the conversation, and what is pending."""
        messages = list(self.conversation.messages(pending))
        if settings.instructions:
            messages.insert(0, Item.written("system", settings.instructions).message())  # type: ignore[arg-type]
        return messages

    def guess(self, question: Item, bytes_in: int) -> None:
        """Somebody pauses: begin an answer to what was said so far."""
        if self._draining or self._answering is not None:
            return
        try:
            self._make_room((question,))
        except BadRequest:  # it will be told if the question ends so
            return
        answering = self._begin(self.settings, (question,), bytes_in)
        answering.speculative = True
        self._guess = Guess(answering, self._version, question)

    def drop_guess(self, reason: str) -> None:
        if self._guess is not None:
            self._guess.answering.stop(Cancelled(reason, code="speaker_went_on"))
            self._guess = None

    def question_ended(self, question: Item, bytes_in: int) -> None:
        """It is the last item now: answer it, with what was begun in its last pause if that still fits."""
        if self._answering is not None:
            self._answer_next = True
            return
        begun = self._guessed(question)
        self._answer(self.settings, begun, bytes_in)
        if begun is not None:
            self._guess = None  # it is no guess any more

    def _guessed(self, question: Item) -> Answering | None:
        """The answer that was begun to just this, if it still stands."""
        guess = self._guess
        if guess is None or guess.answering.has_failed:
            return None
        if (guess.version, guess.question) != (self._version, question):
            return None
        return guess.answering

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
        event = self._saying.event
        response = Response(event, self._num_responses, settings, self._conversation_id, item, metadata=metadata)
        self._answering, self._response, self._last = begun, response, (item.id, begun)
        self._saying.send(response.begin())
        self._tell_limits()
        begun.release()

    def _begin(self, settings: Settings, pending: tuple[Item, ...], bytes_in: int = 0) -> Answering:
        """An answer to the conversation and what is pending; it says nothing until it is released."""
        messages = self._messages(settings, pending)
        first, largest = settings.chunks(self.config)
        answering = Answering(
            self.registry,
            self,
            messages,
            settings.sampling(self.config, new_seed()),
            spoken=settings.spoken,
            config=dataclasses.replace(self.config, first_chunk=first, chunk=largest),
            room=self._saying.room,
            bytes_in=bytes_in,
            prefer=self._end_reading(),
            adaptor=settings.adaptor,
        )
        self._running.add(answering)
        answering.when_ended(self._running.discard)
        return answering

    def _make_room(self, pending: tuple[Item, ...] = ()) -> None:
        leaving = [item.id for item in self.conversation.make_room(pending)]
        for item_id in leaving:
            self.outdate()
            self._saying.say("conversation.item.deleted", item_id=item_id)
        if leaving:
            self._saying.say("omni.conversation.window", left=leaving, kept=len(self.conversation.items))

    def _tell_limits(self) -> None:
        limit = self.config.max_turns
        remaining = max(0, limit - len(self.registry.answering))
        requests = {"name": "requests", "limit": limit, "remaining": remaining, "reset_seconds": 0.0}
        self._saying.say("rate_limits.updated", rate_limits=[requests])

    # --- interruptions ------------------------------------------------------------------------------------------------

    def cancel(self, response_id: str | None) -> None:
        """What `response.cancel` asks for."""
        if self._response is None or response_id not in (None, self._response.id):
            raise BadRequest("There is no such answer to cancel.", code="response_cancel_not_active")
        self.interrupt("client_cancelled")

    def silence(self) -> None:
        """No more sound of the running answer, from now on; its end is told by `interrupt`."""
        answering = self._answering
        if answering is not None and not answering.over:
            answering.stop(Cancelled("The answer was interrupted."))
            answering.unsent = self._saying.withdraw(answering)

    def interrupt(self, reason: str) -> None:
        """End the running answer, if there is one; of it stays what was heard."""
        answering, response = self._answering, self._response
        if answering is None or response is None:
            return
        self.silence()
        self._end(answering, response, "cancelled", heard=answering.heard_seconds, reason=reason)

    def played(self, item_id: str, seconds: float) -> None:
        """The listener has heard so much of an answer."""
        if self._last is not None and self._last[0] == item_id:
            self._last[1].report(seconds)
        else:
            self.conversation.find(item_id)  # an older answer's report comes late: no harm

    def truncate(self, item_id: str, audio_end_ms: int) -> None:
        """Of an answer, only what was heard until then is remembered."""
        self.conversation.truncate(item_id, audio_end_ms)
        self.outdate()
        self._saying.say("conversation.item.truncated", item_id=item_id, content_index=0, audio_end_ms=audio_end_ms)

    def remember_what_was_heard(self) -> None:
        """Speech came over an answer that was made, but still played: a client that reports need not truncate."""
        if self._last is None or self._answering is not None:
            return
        item_id, answering = self._last
        played = answering.playback.reported
        if played is not None and played < answering.playback.seconds_sent and not answering.over:
            answering.over = True
            with suppress(BadRequest):  # it was deleted, or left the window
                self.truncate(item_id, int(1000 * played))

    def remember_the_last_answer(self) -> None:
        """The socket is closed: of an answer that was under way, or still played, what was heard stays."""
        answering, response = self._answering, self._response
        if answering is not None and response is not None:
            self.silence()
            samples = int(answering.heard_seconds * SAMPLE_RATE)
            self.conversation.end_answer(response.item.id, answering.alignment(), samples, completed=False)
            if not response.has_item:  # nothing was said: nothing to remember
                self.conversation.delete(response.item.id)
        else:
            self.remember_what_was_heard()

    # --- what an answer says (Listener) -------------------------------------------------------------------------------

    def said(self, answering: Answering, event: TextDelta | AudioDelta | Done) -> None:
        response = self._response
        if answering is not self._answering or response is None:
            return
        if not response.has_item:
            self._saying.send(response.open_item(self.conversation.previous(response.item.id)))
        if isinstance(event, TextDelta):
            self._saying.send(response.text(event.text))
        elif isinstance(event, AudioDelta):
            self._saying.send_audio(answering, response.audio(event.pcm16))
            self._saying.send(response.align(answering.alignment()))
        else:
            self._saying.send_audio(answering, response.audio(b"", last=True))
            status, reason = ("incomplete", "max_output_tokens") if event.finish == "length" else ("completed", None)
            self._end(answering, response, status, reason=reason)

    def failed(self, answering: Answering, failed: Failed) -> None:
        response = self._response
        if answering is not self._answering or response is None:
            return
        self._saying.withdraw(answering)
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
        self.outdate()
        self.session.worker = answering.worker or self.session.worker
        self._saying.send(response.end(status, previous, reason, failed, answering.usage(), answering.timing()))
        self._when_ended()
        if self._answer_next and not self._draining:
            self._answer(self.settings)
