"""POST /v1/chat/completions as OpenAI's clients speak it: input_audio in, text and audio out, whole or streamed.

Checks a request, makes a conversation of it, and writes a turn's events as chat completions. What is ours to choose:
a user's message with several parts becomes one message per part, in order; every voice name gives the checkpoint's one
voice; pcm16 comes at 24 kHz as OpenAI's does, unless audio.sample_rate asks for another rate.
"""

import io
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import soundfile
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from omni.audio import wav
from omni.audio.resample import Resampler
from omni.audio.wav import SAMPLE_RATE
from omni.serve.errors import BadRequest
from omni.serve.exchange import Exchange
from omni.serve.protocol import AudioDelta, Done, Failed, Message, Sampling, TextDelta
from omni.serve.registry import LiveTurn, Registry
from omni.serve.surface import NO_STORE, Surface, error_body, invalid
from omni.serve.turns_api import SEED_LIMIT, new_seed, within
from omni.serve.uploads import Uploads, from_base64, to_base64

OPENAI_PCM_RATE = 24_000  # Hz, what OpenAI's pcm16 has
KEPT_ANSWERS = 1_000  # transcripts that a later request may name by their audio id
KEPT_SECONDS = 3_600
AUDIO_FORMATS = {"flac": ("FLAC", "PCM_16"), "mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS")}

# Fields that change nothing we do, and fields that are fine as long as they ask for nothing.
IGNORED = {"metadata", "user", "safety_identifier", "service_tier", "verbosity"}
NEUTRAL: dict[str, tuple] = {
    "frequency_penalty": (0, None), "presence_penalty": (0, None), "logit_bias": ({}, None), "logprobs": (False, None),
    "top_logprobs": (0, None), "stop": ([], "", None), "store": (False, None), "tools": ([], None),
    "tool_choice": ("none", "auto", None), "functions": ([], None), "function_call": ("none", "auto", None),
    "parallel_tool_calls": (True, False, None), "response_format": ({"type": "text"}, None), "prediction": (None,),
    "reasoning_effort": ("none", None), "web_search_options": (None,),
}  # fmt: skip

Delta = TextDelta | AudioDelta | Done
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class InputAudio(BaseModel):
    model_config = STRICT
    data: str = Field(description="base64 of a file")
    format: Literal["wav", "mp3", "flac", "ogg", "opus", "m4a", "mp4", "aac", "webm"]  # the bytes are looked at anyway


class TextPart(BaseModel):
    model_config = STRICT
    type: Literal["text"]
    text: str


class AudioPart(BaseModel):
    model_config = STRICT
    type: Literal["input_audio"]
    input_audio: InputAudio


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


TextParts = Annotated[list[TextPart], BeforeValidator(_as_parts)]
Parts = Annotated[
    list[Annotated[TextPart | AudioPart, Field(discriminator="type")]], BeforeValidator(_as_parts), Field(min_length=1)
]


class SystemMessage(BaseModel):
    model_config = STRICT
    role: Literal["system", "developer"]
    content: TextParts
    name: str | None = None


class UserMessage(BaseModel):
    model_config = STRICT
    role: Literal["user"]
    content: Parts
    name: str | None = None


class AudioId(BaseModel):
    model_config = ConfigDict(extra="ignore")  # clients send back the whole message.audio
    id: str


class AssistantMessage(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)  # clients send back the whole message
    role: Literal["assistant"]
    content: TextParts | None = None
    audio: AudioId | None = None


class AudioOut(BaseModel):
    model_config = STRICT
    voice: str | dict[str, Any] = "default"
    format: Literal["wav", "pcm16", "flac", "mp3", "opus"] = "wav"
    sample_rate: Literal[8000, 16000, 24000, 48000] | None = None  # ours; of wav and pcm16

    @property
    def rate(self) -> int:
        return self.sample_rate or (OPENAI_PCM_RATE if self.format == "pcm16" else SAMPLE_RATE)


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class ChatRequest(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str
    messages: list[Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]] = Field(
        min_length=1
    )
    modalities: list[Literal["text", "audio"]] | None = Field(None, min_length=1)
    audio: AudioOut | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1000, description="Ours. 0 switches it off.")
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, gt=-SEED_LIMIT, lt=SEED_LIMIT)
    n: Literal[1] | None = 1
    prompt_cache_key: str | None = Field(None, description="Keeps a conversation's turns with one worker.")
    adaptor: str | None = Field(None, description="Ours. Who hears what is spoken: see /v1/models.")

    @property
    def wants_audio(self) -> bool:
        return "audio" in self.modalities if self.modalities else self.audio is not None

    def sampling(self, limit: int) -> Sampling:
        name = "max_completion_tokens" if self.max_completion_tokens is not None else "max_tokens"
        given = {key: getattr(self, key) for key in ("temperature", "top_p", "top_k") if getattr(self, key) is not None}
        return Sampling(
            **given,
            max_new_tokens=within(getattr(self, name), limit, name),
            seed=self.seed if self.seed is not None else new_seed(),
        )


class Answers:
    """Recent answers by their audio id, so that a conversation can name them instead of sending them."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._kept: OrderedDict[str, tuple[Message, float]] = OrderedDict()

    def keep(self, audio_id: str, answer: Message) -> int:
        """Returns when it is forgotten, in Unix time."""
        expires = self._clock() + KEPT_SECONDS
        self._kept[audio_id] = answer, expires
        while len(self._kept) > KEPT_ANSWERS:
            self._kept.popitem(last=False)
        return int(expires)

    def find(self, audio_id: str) -> Message | None:
        message, expires = self._kept.get(audio_id, (None, 0.0))
        return message if expires > self._clock() else None


def said_by(live: LiveTurn) -> Message:
    """A turn's answer, with its own tokens."""
    assert live.turn is not None, "it has been answered"
    alignment = live.turn.alignment()
    return Message("assistant", text=alignment.text, token_ids=alignment.token_ids)


class OpenAIApi(Surface):
    name = "chat"

    def __init__(self, registry: Registry, uploads: Uploads) -> None:
        super().__init__(registry, uploads)
        self.answers = Answers()

    async def answer(self, exchange: Exchange, live: LiveTurn) -> None:
        limit = 2**16 + self.config.max_upload_bytes * 4 // 3  # base64, and words around it
        body = await self.read(exchange, live, limit)
        request = await self.uploads.in_thread(parse, body)
        del body
        self.check_model(request.model)
        adaptor = self.adaptor(request.adaptor)
        sampling = request.sampling(self.config.max_new_tokens)
        conversation = await self._conversation(request)
        session = self.session_of(exchange, request.prompt_cache_key)
        answer = live.answer(conversation, sampling, audio=request.wants_audio, session=session, adaptor=adaptor)
        async with aclosing(answer) as events:
            if request.stream:
                await self._stream(exchange, live, request, events)
            else:
                await self._whole(exchange, live, request, events)

    def last_words(self, exchange: Exchange, failed: Failed) -> bytes:
        return b"data: " + error_body(failed) + b"\n\n"

    async def _conversation(self, request: ChatRequest) -> list[Message]:
        """The request's messages as the model takes them: one per part; every spoken one as PCM."""
        self._check_size(request)
        conversation: list[Message] = []
        for i, message in enumerate(request.messages):
            if isinstance(message, AssistantMessage):
                conversation.append(self._said(message, f"messages.{i}"))
                continue
            role = "user" if message.role == "user" else "system"
            for k, part in enumerate(message.content):
                if isinstance(part, TextPart):
                    conversation.append(Message(role, text=part.text))
                else:
                    param = f"messages.{i}.content.{k}.input_audio.data"
                    data = await self.uploads.in_thread(from_base64, part.input_audio.data, param)
                    conversation.append(Message(role, pcm16=await self.uploads.decode(data, param=param)))
        if conversation[-1].role != "user":
            raise BadRequest("The last message must be the user's.", code="invalid_value", param="messages")
        return conversation

    def _check_size(self, request: ChatRequest) -> None:
        config = self.config
        parts = [part for each in request.messages for part in each.content or []]
        spoken = sum(isinstance(part, AudioPart) for part in parts)
        written = sum(len(part.text) for part in parts if isinstance(part, TextPart))
        for count, limit, what in (
            (max(len(parts), len(request.messages)), config.max_messages, "messages and parts"),
            (spoken, config.max_utterances, "spoken parts"),
            (written, config.max_text_chars, "characters"),
        ):
            if count > limit:
                raise BadRequest(
                    f"The conversation has {count} {what}; the limit is {limit}.", code="too_long", param="messages"
                )

    def _said(self, message: AssistantMessage, param: str) -> Message:
        if message.content:
            return Message("assistant", text="".join(part.text for part in message.content))
        if message.audio is None:
            raise BadRequest(f"{param} has neither content nor audio.id.", code="invalid_value", param=param)
        kept = self.answers.find(message.audio.id)
        if kept is None:
            raise BadRequest(
                f"The answer {message.audio.id!r} is not (or no longer) kept here. Send its transcript as content.",
                code="audio_not_found",
                param=f"{param}.audio.id",
            )
        return kept

    async def _whole(
        self, exchange: Exchange, live: LiveTurn, request: ChatRequest, events: AsyncIterator[Delta]
    ) -> None:
        pcm = bytearray()
        async for event in events:
            if isinstance(event, AudioDelta):
                pcm += event.pcm16
        assert live.done is not None, "the last event is Done"
        message: dict[str, Any] = {"role": "assistant", "content": live.done.text, "refusal": None}
        if request.wants_audio:
            data = await self.uploads.in_thread(encode, bytes(pcm), request.audio or AudioOut())
            audio_id = f"audio_{live.turn_id}"
            expires = self.answers.keep(audio_id, said_by(live))
            audio = {"id": audio_id, "data": to_base64(data), "expires_at": expires, "transcript": live.done.text}
            message |= {"content": None, "audio": audio}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": live.done.finish}
        reply = self._head(live, "chat.completion") | {"choices": [choice], "usage": usage(live)}
        body = json.dumps(reply, ensure_ascii=False).encode()
        headers = {"content-type": "application/json", "x-request-id": live.turn_id, **NO_STORE}
        await exchange.start(200, headers | {"content-length": str(len(body))})
        await exchange.send(body, last=True)

    async def _stream(
        self, exchange: Exchange, live: LiveTurn, request: ChatRequest, events: AsyncIterator[Delta]
    ) -> None:
        writer = ChunkWriter(self._head(live, "chat.completion.chunk"), request, live.turn_id)
        async for event in events:
            if not exchange.started:  # until here an error still has its HTTP status
                headers = {"content-type": "text/event-stream", "x-request-id": live.turn_id, **NO_STORE}
                await exchange.start(200, headers)
                await exchange.send(writer.first())
            if isinstance(event, TextDelta):
                await exchange.send(writer.text(event.text))
            elif isinstance(event, AudioDelta):
                await exchange.send(writer.audio(event.pcm16))
            else:
                expires = self.answers.keep(writer.audio_id, said_by(live)) if request.wants_audio else 0
                await exchange.send(writer.last(event.finish, expires, usage(live)))
        await exchange.finish()

    def _head(self, live: LiveTurn, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{live.turn_id}",
            "object": kind,
            "created": int(time.time()),
            "model": self.config.model_name,
        }


@dataclass
class ChunkWriter:
    """A turn's events as server-sent chat.completion.chunk objects."""

    head: dict[str, Any]
    request: ChatRequest
    turn_id: str

    def __post_init__(self) -> None:
        self.audio_id = f"audio_{self.turn_id}"
        self.spoken = self.request.wants_audio
        self.with_usage = bool(self.request.stream_options and self.request.stream_options.include_usage)
        rate = (self.request.audio or AudioOut(format="pcm16")).rate
        self._resample = Resampler(SAMPLE_RATE, rate) if self.spoken else None

    def first(self) -> bytes:
        return self._chunk({"role": "assistant", "content": None if self.spoken else ""})

    def text(self, text: str) -> bytes:
        if self.spoken:
            return self._chunk({"audio": {"id": self.audio_id, "transcript": text}})
        return self._chunk({"content": text})

    def audio(self, pcm16: bytes) -> bytes:
        assert self._resample is not None, "a turn without audio sends none"
        return self._audio(self._resample(pcm16))

    def last(self, finish: str, expires: int, used: dict[str, Any]) -> bytes:
        data = b""
        if self._resample is not None:
            data += self._audio(self._resample(b"", last=True))
            data += self._chunk({"audio": {"id": self.audio_id, "expires_at": expires}})
        data += self._chunk({}, finish)
        if self.with_usage:
            data += _event(self.head | {"choices": [], "usage": used})
        return data + b"data: [DONE]\n\n"

    def _audio(self, pcm16: bytes) -> bytes:
        return self._chunk({"audio": {"id": self.audio_id, "data": to_base64(pcm16)}}) if pcm16 else b""

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _event(self.head | {"choices": [choice]} | ({"usage": None} if self.with_usage else {}))


def parse(body: bytes) -> ChatRequest:
    """The body's JSON, checked field by field. BadRequest names the first that is wrong."""
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as exc:
        raise invalid(exc, ChatRequest) from exc
    for name, value in (request.model_extra or {}).items():
        if name in IGNORED or value in NEUTRAL.get(name, ()):
            continue
        code = "unsupported_parameter" if name in NEUTRAL else "unknown_parameter"
        raise BadRequest(f"{name[:100]} is not supported here with this value.", code=code, param=name[:100])
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise BadRequest("Give max_tokens or max_completion_tokens, not both.", code="invalid_value")
    if request.stream and request.wants_audio and request.audio and request.audio.format != "pcm16":
        raise BadRequest(
            f"audio.format {request.audio.format!r} cannot be streamed. Select 'pcm16', or stream=false.",
            code="unsupported_value",
            param="audio.format",
        )
    return request


def encode(pcm16: bytes, audio: AudioOut) -> bytes:
    """16 kHz PCM → a file (or bare PCM) as asked for."""
    if audio.format == "pcm16":
        return Resampler(SAMPLE_RATE, audio.rate)(pcm16, last=True)
    if audio.format == "wav":
        return wav.wav_bytes(Resampler(SAMPLE_RATE, audio.rate)(pcm16, last=True), audio.rate)
    container, subtype = AUDIO_FORMATS[audio.format]
    file = io.BytesIO()
    soundfile.write(file, np.frombuffer(pcm16, dtype="<i2"), SAMPLE_RATE, format=container, subtype=subtype)
    return file.getvalue()


def usage(live: LiveTurn) -> dict[str, Any]:
    assert live.done is not None, "usage is known at the end"
    asked, answered = live.done.num_prompt_tokens, live.done.num_tokens
    return {
        "prompt_tokens": asked,
        "completion_tokens": answered,
        "total_tokens": asked + answered,
        "prompt_tokens_details": {"cached_tokens": live.done.num_cached_tokens},
        "audio_seconds": {"input": round(live.audio_in, 3), "output": round(live.audio_out, 3)},
    }


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"
