"""The events of a turn as bytes, there and back. Knows no HTTP and no model; docs/protocol.md is its contract.

    frame = type (1 byte) · length of the payload (4 bytes, big-endian) · payload

    S  start   JSON {"turn_id", "model", "sample_rate", "seed"}      once, first
    T  text    UTF-8, appended to what came before
    A  audio   int16 LE, mono, sample_rate Hz, follows on without gap
    D  done    JSON {"text", "finish", "num_tokens", …}              once, last   } one of the two,
    E  error   JSON {"code", "message", "status", "retry_after"}     once, last   } always

A reader skips types it does not know. The same events as JSON lines carry the audio in base64.
"""

import base64
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from omni.serve.protocol import AudioDelta, Done, Event, Failed, TextDelta

FRAMES = "application/vnd.omni.events"
JSON_LINES = "application/x-ndjson"
SAMPLE_BYTES = 2  # int16
HEADER_BYTES = 5
MAX_PAYLOAD = 1 << 26  # what a reader believes: 64 MiB are half an hour of audio
START, TEXT, AUDIO, DONE, ERROR = b"STADE"


@dataclass(frozen=True)
class Started:
    """The turn has a name and was admitted; its answer follows."""

    turn_id: str
    model: str
    sample_rate: int  # Hz, of every audio event
    seed: int  # ask again with it to hear the same answer


class EventError(ValueError):
    """The bytes are no events: another protocol, or a broken stream."""


def to_frame(event: Started | Event) -> bytes:
    kind, payload = _payload(event)
    return bytes([kind]) + len(payload).to_bytes(4, "big") + payload


def to_json_line(event: Started | Event) -> bytes:
    match event:
        case TextDelta():
            data = {"type": "text", "text": event.text}
        case AudioDelta():
            data = {"type": "audio", "pcm16": base64.b64encode(event.pcm16).decode()}
        case _:
            data = {"type": _NAMES[type(event)], **asdict(event)}
    return json.dumps(data, ensure_ascii=False).encode() + b"\n"


class FrameReader:
    """Bytes in any portions → events.

    reader = FrameReader()
    for event in reader.feed(data): ...
    """

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._samples = 0  # heard so far

    def feed(self, data: bytes) -> Iterator[Started | Event]:
        self._waiting += data
        while len(self._waiting) >= HEADER_BYTES:
            size = int.from_bytes(self._waiting[1:HEADER_BYTES], "big")
            if size > MAX_PAYLOAD:
                raise EventError(f"A frame says it has {size} bytes; at most {MAX_PAYLOAD} are believed.")
            if len(self._waiting) < HEADER_BYTES + size:
                return
            kind, payload = self._waiting[0], bytes(self._waiting[HEADER_BYTES : HEADER_BYTES + size])
            del self._waiting[: HEADER_BYTES + size]
            event = self._event(kind, payload)
            if event is not None:
                yield event

    def _event(self, kind: int, payload: bytes) -> Started | Event | None:
        try:
            if kind == TEXT:
                return TextDelta(payload.decode())
            if kind == AUDIO:
                event = AudioDelta(payload, self._samples)
                self._samples += len(payload) // SAMPLE_BYTES
                return event
            known = {START: Started, DONE: Done, ERROR: Failed}.get(kind)
            return None if known is None else _build(known, json.loads(payload))
        except (UnicodeDecodeError, json.JSONDecodeError, TypeError, AttributeError) as exc:
            raise EventError(f"A frame of type {chr(kind)!r} cannot be read: {exc}") from exc


_NAMES = {Started: "start", Done: "done", Failed: "error"}


def _payload(event: Started | Event) -> tuple[int, bytes]:
    match event:
        case TextDelta():
            return TEXT, event.text.encode()
        case AudioDelta():
            return AUDIO, event.pcm16
        case Started():
            return START, _json(event)
        case Done():
            return DONE, _json(event)
        case Failed():
            return ERROR, _json(event)


def _json(event: Started | Done | Failed) -> bytes:
    return json.dumps(asdict(event), ensure_ascii=False).encode()


def _build(known: type, data: dict[str, Any]) -> Any:
    """Fields a newer server adds are skipped; missing ones are an error."""
    names = {each.name for each in fields(known)}
    return known(**{name: value for name, value in data.items() if name in names})
