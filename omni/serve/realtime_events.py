"""The events of /v1/realtime: what a client may say, checked field by field, and the names of all that we say.

    event = parse(text)                       # one of CLIENT_EVENTS' models; BadRequest names what is wrong
    socket.post(server_event("response.done", event_id, response={...}))

docs/protocol.md has the same tables for people; a test compares. Knows no state: whether an event fits, dialogue.py
knows.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from omni.serve.conversation import Item
from omni.serve.errors import BadRequest
from omni.serve.protocol import Failed
from omni.serve.surface import invalid
from omni.serve.uploads import to_base64

MAX_ID = 128  # characters; protocol ids have 32


class ClientEvent(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    type: str
    event_id: str | None = Field(None, max_length=512)


class SessionUpdate(ClientEvent):
    session: dict[str, Any]


class Append(ClientEvent):
    audio: str


class Commit(ClientEvent):
    pass


class Clear(ClientEvent):
    pass


class Part(BaseModel):
    model_config = ConfigDict(extra="ignore")
    type: Literal["input_text", "input_audio", "output_text", "output_audio", "text"]
    text: str | None = None
    audio: str | None = None
    transcript: str | None = None


class GivenItem(BaseModel):
    model_config = ConfigDict(extra="ignore")  # object, status: ours to say
    id: str | None = Field(None, min_length=1, max_length=MAX_ID)
    type: Literal["message"]
    role: Literal["system", "user", "assistant"]
    content: list[Part] = Field(min_length=1)


class ItemCreate(ClientEvent):
    item: GivenItem
    previous_item_id: str | None = None


class ItemRetrieve(ClientEvent):
    item_id: str


class ItemDelete(ClientEvent):
    item_id: str


class ItemTruncate(ClientEvent):
    item_id: str
    content_index: Annotated[int, Field(ge=0, le=0)]
    audio_end_ms: int


class ResponseCreate(ClientEvent):
    response: dict[str, Any] | None = None


class ResponseCancel(ClientEvent):
    response_id: str | None = None


class OutputClear(ClientEvent):
    pass


class Playback(ClientEvent):
    item_id: str
    played_ms: float = Field(ge=0)


class SessionResume(ClientEvent):
    session_id: str
    token: str = Field(repr=False)


class SessionAcknowledge(ClientEvent):
    pass


CLIENT_EVENTS: dict[str, type[ClientEvent]] = {
    "session.update": SessionUpdate,
    "input_audio_buffer.append": Append,
    "input_audio_buffer.commit": Commit,
    "input_audio_buffer.clear": Clear,
    "conversation.item.create": ItemCreate,
    "conversation.item.retrieve": ItemRetrieve,
    "conversation.item.delete": ItemDelete,
    "conversation.item.truncate": ItemTruncate,
    "response.create": ResponseCreate,
    "response.cancel": ResponseCancel,
    "output_audio_buffer.clear": OutputClear,
    "omni.playback": Playback,
    "omni.session.resume": SessionResume,
    "omni.session.acknowledge": SessionAcknowledge,
}

SERVER_EVENTS = {
    "session.created", "session.updated",
    "input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped",
    "input_audio_buffer.committed", "input_audio_buffer.cleared",
    "conversation.item.added", "conversation.item.done", "conversation.item.retrieved",
    "conversation.item.deleted", "conversation.item.truncated",
    "conversation.item.input_audio_transcription.failed",
    "response.created", "response.output_item.added", "response.content_part.added",
    "response.output_audio.delta", "response.output_audio.done",
    "response.output_audio_transcript.delta", "response.output_audio_transcript.done",
    "response.output_text.delta", "response.output_text.done",
    "response.content_part.done", "response.output_item.done", "response.done",
    "rate_limits.updated", "error",
    "omni.session.token", "omni.conversation.window", "omni.alignment.delta",
}  # fmt: skip


def parse(text: str) -> ClientEvent:
    """JSON → an event. BadRequest: invalid_json, unknown_event_type, or the field that is wrong."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BadRequest(f"The message is not JSON: {exc}", code="invalid_json") from exc
    if not isinstance(data, dict):
        raise BadRequest("The message is no JSON object.", code="invalid_json")
    kind = data.get("type")
    if not isinstance(kind, str):
        raise BadRequest("The event has no type.", code="missing_required_parameter", param="type")
    model = CLIENT_EVENTS.get(kind)
    if model is None:
        known = ", ".join(CLIENT_EVENTS)
        raise BadRequest(
            f"There is no event {kind[:100]!r}. Select one of {known}.", code="unknown_event_type", param="type"
        )
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        raise invalid(exc, model) from exc


def event_id_of(text: str) -> str | None:
    """The id of an event that may be wrong otherwise, so that its error can name it."""
    try:
        found = json.loads(text)["event_id"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    return found[:512] if isinstance(found, str) else None


def server_event(kind: str, event_id: str, **fields: Any) -> dict[str, Any]:
    assert kind in SERVER_EVENTS, f"{kind} is in no table"
    return {"type": kind, "event_id": event_id, **fields}


def error_fields(failed: Failed, param: str | None = None, event_id: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = "invalid_request_error" if failed.status < 500 else "server_error"
    return {"type": kind, "code": failed.code, "message": failed.message, "param": param, "event_id": event_id}


def shown_item(item: Item, *, audio: bool = False) -> dict[str, Any]:
    """An item as the protocol has it. A user's audio only where it is asked for: it is long."""
    shown = {"id": item.id, "object": "realtime.item", "type": "message", "status": item.status, "role": item.role}
    if item.pcm16 is not None:
        part: dict[str, Any] = {"type": "input_audio", "transcript": None}
        if audio:
            part["audio"] = to_base64(item.pcm16)
        return shown | {"content": [part]}
    if item.role != "assistant":
        return shown | {"content": [{"type": "input_text", "text": item.text or ""}]}
    if item.alignment is None or not item.alignment.spoken:
        return shown | {"content": [{"type": "output_text", "text": item.text or ""}]}
    if item.status == "in_progress":
        return shown | {"content": []}
    heard = item.heard.text if item.heard is not None else item.text
    return shown | {"content": [{"type": "output_audio", "transcript": heard}]}
