"""A live conversation's settings, as OpenAI's Realtime protocol names them; ours are under `omni`. Plain checked data.

    settings = Settings()
    settings = settings.updated({"audio": {"input": {"turn_detection": None}}})   # only what is given changes
    settings.shown()                                                              # as session.updated tells it

What an unmodified client asks for and nobody here can give is accepted where the client can live without it, and shown
as it is: `transcription` stays null, `semantic_vad` becomes a server_vad. Everything else is refused by name.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from omni.audio.wav import SAMPLE_RATE
from omni.serve import turn_taking
from omni.serve.config import ServeConfig
from omni.serve.errors import BadRequest
from omni.serve.protocol import Sampling
from omni.serve.surface import check_adaptor, invalid
from omni.serve.turns_api import SEED_LIMIT

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)
EAGERNESS = {"low": 1000, "medium": 500, "auto": 500, "high": 250}  # ms of silence, of a semantic_vad

# What clients send with every update, and what is fine as long as it asks for nothing.
IGNORED = {"id", "object", "expires_at", "tracing", "truncation", "parallel_tool_calls"}
NEUTRAL: dict[str, tuple] = {
    "tools": ([], None), "tool_choice": ("auto", "none", None), "prompt": (None,), "include": ([], None),
    "reasoning": (None,),
}  # fmt: skip
OF_RESPONSE = {"instructions", "output_modalities", "max_output_tokens", "temperature", "audio", "omni"}


class Pcm(BaseModel):
    model_config = STRICT
    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Literal[16000, 24000] = 24000


class ServerVad(BaseModel):
    model_config = STRICT
    type: Literal["server_vad"] = "server_vad"
    threshold: float = Field(default=0.5, gt=0, lt=1)
    prefix_padding_ms: int = Field(default=300, ge=0, le=2000)
    silence_duration_ms: int = Field(default=500, ge=100, le=5000)
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout_ms: None = None


class AudioIn(BaseModel):
    model_config = STRICT
    format: Pcm = Pcm()
    turn_detection: ServerVad | None = ServerVad()
    transcription: dict[str, Any] | None = None
    noise_reduction: None = None

    @field_validator("turn_detection", mode="before")
    @classmethod
    def _as_server_vad(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("type") != "semantic_vad":
            return given
        eagerness = given.get("eagerness") or "auto"
        if eagerness not in EAGERNESS:
            raise ValueError(f"eagerness is {eagerness!r}. Select one of {', '.join(EAGERNESS)}")
        rest = {name: given[name] for name in ("create_response", "interrupt_response") if name in given}
        return ServerVad(silence_duration_ms=EAGERNESS[eagerness], **rest)


class AudioOut(BaseModel):
    model_config = STRICT
    format: Pcm | None = None  # as the input's
    voice: str | dict[str, Any] = "default"
    speed: Literal[1] = 1

    @field_validator("voice", mode="before")
    @classmethod
    def _unless_none(cls, given: Any) -> Any:
        return "default" if given is None else given


class Audio(BaseModel):
    model_config = STRICT
    input: AudioIn = AudioIn()
    output: AudioOut = AudioOut()


class Ours(BaseModel):
    model_config = STRICT
    top_p: float = Field(default=Sampling.top_p, gt=0, le=1)
    top_k: int = Field(default=Sampling.top_k, ge=0, le=1000)
    seed: int | None = Field(default=None, gt=-SEED_LIMIT, lt=SEED_LIMIT)
    first_chunk: int | None = Field(default=None, ge=1, le=1000)
    chunk: int | None = Field(default=None, ge=1, le=1000)
    binary_audio: bool = False
    speech_ms: int | None = Field(default=None, ge=0, le=1000)
    adaptor: str | None = None


class Settings(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False, frozen=True)
    type: Literal["realtime"] = "realtime"
    model: str | None = None
    output_modalities: list[Literal["text", "audio"]] = Field(default=["audio"], min_length=1, max_length=1)
    instructions: str = ""
    max_output_tokens: int | Literal["inf"] = "inf"
    temperature: float = Field(default=Sampling.temperature, ge=0, le=2)
    audio: Audio = Audio()
    omni: Ours = Ours()

    @field_validator("instructions", mode="before")
    @classmethod
    def _unless_none(cls, given: Any) -> Any:
        return "" if given is None else given

    # --- changes ------------------------------------------------------------------------------------------------------

    def updated(self, given: dict[str, Any], param: str = "session") -> "Settings":
        """With what is given instead, all of it or nothing. BadRequest names what is wrong."""
        extra = {name: value for name, value in given.items() if name not in type(self).model_fields}
        for name, value in extra.items():
            if name not in IGNORED and value not in NEUTRAL.get(name, ()):
                code = "unsupported_parameter" if name in NEUTRAL else "unknown_parameter"
                where = f"{param}.{name[:100]}"
                raise BadRequest(f"{where} is not supported here with this value.", code=code, param=where)
        wanted = {name: value for name, value in given.items() if name not in extra}
        try:
            return type(self).model_validate(_merged(self.model_dump(), wanted))
        except ValidationError as exc:
            error = invalid(exc, Settings)
            where = f"{param}.{error.param}" if error.param else param
            raise BadRequest(f"{param}.{error.message}", code=error.code, param=where) from exc

    def for_response(self, given: dict[str, Any]) -> "Settings":
        """As one response wants it."""
        wanted = dict(given)
        for name in ("metadata", "conversation", "input", *NEUTRAL, *IGNORED):
            value = wanted.pop(name, None)
            neutral = {"metadata": (value,), "conversation": ("auto", None), "input": (None,)} | NEUTRAL
            if name not in IGNORED and value is not None and value not in neutral[name]:
                where = f"response.{name}"
                raise BadRequest(f"{where} is not supported.", code="unsupported_parameter", param=where)
        for name in wanted:
            if name not in OF_RESPONSE:
                where = f"response.{name[:100]}"
                raise BadRequest(f"{where} is not known.", code="unknown_parameter", param=where)
        return self.updated(wanted, "response")

    def check(self, config: ServeConfig) -> None:
        """Against this server's limits."""
        if self.model not in (None, config.model_name):
            raise BadRequest(
                f"There is no model {str(self.model)[:100]!r} here. Select {config.model_name!r}.",
                code="model_not_found",
                param="session.model",
            )
        check_adaptor(self.omni.adaptor, config, "session.omni.adaptor")
        if len(self.instructions) > config.max_text_chars:
            raise BadRequest(
                f"session.instructions has more than {config.max_text_chars} characters.",
                code="too_long",
                param="session.instructions",
            )
        tokens = self.max_output_tokens
        if tokens != "inf" and not 1 <= tokens <= config.max_new_tokens:
            raise BadRequest(
                f"session.max_output_tokens is {tokens}; this server allows 1 to {config.max_new_tokens}, and 'inf'.",
                code="invalid_value",
                param="session.max_output_tokens",
            )
        first, largest = self.chunks(config)
        if first > largest:
            raise BadRequest(
                f"session.omni.first_chunk is {first}, more than the chunk of {largest}.",
                code="invalid_value",
                param="session.omni.first_chunk",
            )

    # --- what follows from them ---------------------------------------------------------------------------------------

    @property
    def spoken(self) -> bool:
        return self.output_modalities == ["audio"]

    @property
    def rate_in(self) -> int:
        return self.audio.input.format.rate

    @property
    def rate_out(self) -> int:
        return (self.audio.output.format or self.audio.input.format).rate

    @property
    def voice(self) -> str:
        voice = self.audio.output.voice
        return voice if isinstance(voice, str) else str(voice.get("id", "default"))

    @property
    def adaptor(self) -> str:
        return self.omni.adaptor or ""

    @property
    def turn_detection(self) -> ServerVad | None:
        return self.audio.input.turn_detection

    def taking(self, config: ServeConfig) -> turn_taking.Settings:
        """How turns are taken. Turn detection must be on."""
        vad = self.turn_detection
        assert vad is not None, "push-to-talk has no turn-taking"
        speech_ms = config.speech_ms if self.omni.speech_ms is None else self.omni.speech_ms
        pauses = vad.silence_duration_ms, config.pause_ms
        return turn_taking.Settings(vad.threshold, vad.prefix_padding_ms, *pauses, speech_ms)

    def chunks(self, config: ServeConfig) -> tuple[int, int]:
        """Units in the first and the largest piece of sound."""
        largest = self.omni.chunk or config.chunk
        return self.omni.first_chunk or min(config.first_chunk, largest), largest

    def sampling(self, config: ServeConfig, seed: int) -> Sampling:
        tokens = config.max_new_tokens if self.max_output_tokens == "inf" else self.max_output_tokens
        own = self.omni
        return Sampling(self.temperature, own.top_p, own.top_k, tokens, seed if own.seed is None else own.seed)

    def shown(self, config: ServeConfig) -> dict[str, Any]:
        """As session.created and session.updated tell it, what is not supported included."""
        shown = self.model_dump() | {"object": "realtime.session", "model": config.model_name}
        shown["audio"]["input"]["transcription"] = None
        shown["audio"]["output"]["format"] = {"type": "audio/pcm", "rate": self.rate_out}
        first, largest = self.chunks(config)
        speech_ms = config.speech_ms if self.omni.speech_ms is None else self.omni.speech_ms
        shown["omni"] |= {"first_chunk": first, "chunk": largest, "speech_ms": speech_ms, "model_rate": SAMPLE_RATE}
        shown["omni"]["adaptors"] = list(config.adaptors)
        none: dict[str, Any] = {"tools": [], "tool_choice": "auto", "tracing": None, "prompt": None, "include": None}
        return shown | none | {"truncation": "auto"}


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Objects are merged, everything else is replaced."""
    merged = dict(old)
    for name, value in new.items():
        before = merged.get(name)
        both = isinstance(before, dict) and isinstance(value, dict)
        if both and value.get("type", before.get("type")) == before.get("type"):  # type: ignore[union-attr]
            merged[name] = _merged(before, value)  # type: ignore[arg-type]
        else:  # another type is another thing
            merged[name] = value
    return merged
