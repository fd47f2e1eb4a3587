"""What the server says in one conversation: its events, numbered and in their order.

    saying = Saying(post=socket.post, withdraw=socket.withdraw, room=socket.room)
    saying.say("session.created", session={...})
    saying.send(response.begin())
    saying.send_audio(answering, response.audio(pcm16))      # may still be withdrawn
    saying.complain(exc)

Knows the events' names; knows no socket (live_socket.py) and not when what is said (dialogue.py, responding.py).
"""

from collections.abc import Awaitable, Callable
from typing import Any

from omni.serve import realtime_events as events
from omni.serve.answering import Answering
from omni.serve.realtime_response import Event, Outgoing
from omni.serve.registry import failure

CHANGES = {  # what is kept of a session is new whenever one of these is said
    "session.updated",
    "conversation.item.done",
    "conversation.item.deleted",
    "conversation.item.truncated",
    "response.done",
}


class Saying:
    def __init__(
        self,
        *,
        post: Callable[..., None],
        withdraw: Callable[[Any], float],
        room: Callable[[], Awaitable[None]],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.room = room
        self._post, self._withdraw, self._changed = post, withdraw, changed
        self._num_events = 0

    def event(self, kind: str, **fields: Any) -> Event:
        self._num_events += 1
        if kind in CHANGES:
            self._changed()
        return events.server_event(kind, f"event_{self._num_events}", **fields)

    def say(self, kind: str, **fields: Any) -> None:
        self._post(self.event(kind, **fields))

    def send(self, outgoing: Outgoing) -> None:
        for message in outgoing:
            self._post(message)

    def send_audio(self, answering: Answering, outgoing: Outgoing) -> None:
        for message in outgoing:
            self._post(message, answering, answering.playback.last_sent)

    def withdraw(self, answering: Answering) -> float:
        """Do not send what still waits of an answer's sound. Returns its seconds."""
        return self._withdraw(answering)

    def complain(self, exc: BaseException, event_id: str | None = None) -> None:
        """An error event; `event_id` is that of the client event at fault."""
        self.say("error", error=events.error_fields(failure(exc), getattr(exc, "param", None), event_id))
