"""One response as Realtime events: what a turn says, in the protocol's words and order. Decides only: no I/O.

    response = Response(event, number, settings, conversation_id, item_id)
    response.begin()                       # response.created
    response.text(delta); response.audio(pcm16); response.align(alignment)
    response.end("completed", usage, timing)           # … .done, in order; then response.done

Every method returns the messages to send: events as dicts, audio frames as bytes.
"""

import struct
import uuid
from collections.abc import Callable
from typing import Any

from omni.audio.resample import Resampler
from omni.audio.wav import SAMPLE_RATE
from omni.serve.alignment import Alignment
from omni.serve.conversation import Item
from omni.serve.protocol import Failed
from omni.serve.realtime_events import error_fields, shown_item
from omni.serve.realtime_settings import Settings
from omni.serve.uploads import to_base64

FRAME_HEADER = struct.Struct(">III")  # response's number, first sample, frame's number
SAMPLE_BYTES = 2  # int16

Event = dict[str, Any]
Outgoing = list[Event | bytes]


class Response:
    def __init__(
        self,
        event: Callable[..., Event],
        number: int,
        settings: Settings,
        conversation_id: str,
        item: Item,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.id = f"resp_{uuid.uuid4().hex[:24]}"
        self.item, self.number = item, number
        self.status = "in_progress"
        self.samples_sent = 0  # at the output rate
        self._event, self._settings = event, settings
        self._conversation_id, self._metadata = conversation_id, metadata
        self._transcript = ""
        self.has_item = False
        self._frames = self._aligned = 0
        self._resample = Resampler(SAMPLE_RATE, settings.rate_out)

    @property
    def seconds_sent(self) -> float:
        return self.samples_sent / self._settings.rate_out

    # --- its events ---------------------------------------------------------------------------------------------------

    def begin(self) -> Outgoing:
        return [self._event("response.created", response=self._shown())]

    def open_item(self, previous: str | None) -> Outgoing:
        """Once, before the first text or audio."""
        self.has_item = True
        item = shown_item(self.item)
        return [
            self._event("response.output_item.added", response_id=self.id, output_index=0, item=item),
            self._event("conversation.item.added", item=item, previous_item_id=previous),
            self._part_event("response.content_part.added", part=self._part("")),
        ]

    def text(self, delta: str) -> Outgoing:
        self._transcript += delta
        return [self._part_event(f"{self._text_kind}.delta", delta=delta)]

    def audio(self, pcm16: bytes, *, last: bool = False) -> Outgoing:
        """16 kHz in; the session's rate out."""
        pcm16 = self._resample(pcm16, last=last)
        if not pcm16:
            return []
        first, self.samples_sent = self.samples_sent, self.samples_sent + len(pcm16) // SAMPLE_BYTES
        if self._settings.omni.binary_audio:
            header = FRAME_HEADER.pack(self.number, first, self._frames)
            self._frames += 1
            return [header + pcm16]
        return [self._part_event("response.output_audio.delta", delta=to_base64(pcm16))]

    def align(self, alignment: Alignment) -> Outgoing:
        """Of the tokens whose sound has been sent since the last time: where their letters and their sound end."""
        ends = list(zip(alignment.char_ends, alignment.sample_ends, strict=False))[self._aligned :]
        self._aligned += len(ends)
        if not ends:
            return []
        told = [[chars, samples * 1000 // SAMPLE_RATE] for chars, samples in ends]
        return [self._event("omni.alignment.delta", response_id=self.id, item_id=self.item.id, ends=told)]

    def end(
        self,
        status: str,
        previous: str | None = None,
        reason: str | None = None,
        failed: Failed | None = None,
        usage: dict[str, Any] | None = None,
        timing: dict[str, Any] | None = None,
    ) -> Outgoing:
        """The last events. Nothing of this response may follow."""
        self.status = status
        events: Outgoing = []
        if self.has_item:
            events += self._close_item(previous)
        details: dict[str, Any] | None = None if status == "completed" else {"type": status}
        if details is not None and reason is not None:
            details["reason"] = reason
        if details is not None and failed is not None:
            told = error_fields(failed)
            details["error"] = {name: told[name] for name in ("type", "code", "message")}
        shown = self._shown() | {"status_details": details, "usage": usage}
        shown["omni"] |= {"timing": timing}
        return [*events, self._event("response.done", response=shown)]

    # --- their parts --------------------------------------------------------------------------------------------------

    @property
    def _text_kind(self) -> str:
        return "response.output_audio_transcript" if self._settings.spoken else "response.output_text"

    def _close_item(self, previous: str | None) -> Outgoing:
        item = shown_item(self.item)
        events: Outgoing = []
        if self._settings.spoken:
            events.append(self._part_event("response.output_audio.done"))
            events.append(self._part_event(f"{self._text_kind}.done", transcript=self._transcript))
        else:
            events.append(self._part_event(f"{self._text_kind}.done", text=self._transcript))
        return [
            *events,
            self._part_event("response.content_part.done", part=self._part(self._transcript)),
            self._event("response.output_item.done", response_id=self.id, output_index=0, item=item),
            self._event("conversation.item.done", item=item, previous_item_id=previous),
        ]

    def _part_event(self, kind: str, **fields: Any) -> Event:
        where = {"response_id": self.id, "item_id": self.item.id, "output_index": 0, "content_index": 0}
        return self._event(kind, **where, **fields)

    def _part(self, text: str) -> dict[str, str]:
        return {"type": "audio", "transcript": text} if self._settings.spoken else {"type": "text", "text": text}

    def _shown(self) -> dict[str, Any]:
        own = self._settings
        audio = {"output": {"format": {"type": "audio/pcm", "rate": own.rate_out}, "voice": own.voice}}
        return {
            "object": "realtime.response",
            "id": self.id,
            "status": self.status,
            "status_details": None,
            "output": [shown_item(self.item)] if self.has_item else [],
            "conversation_id": self._conversation_id,
            "output_modalities": own.output_modalities,
            "max_output_tokens": own.max_output_tokens,
            "audio": audio,
            "metadata": self._metadata,
            "usage": None,
            "omni": {"number": self.number},
        }
