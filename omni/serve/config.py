"""Everything `omni up` was told, as one frozen value: made in main(), checked loudly, handed down.

The controller reads it back from a file (`ServeConfig.read`); workers get it pickled. Defaults live here and only here.
"""

import json
import re
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path

from omni.checkpoints import Checkpoint, resolve
from omni.model import adaptors

API_KEY_VARIABLE = "OMNI_API_KEY"  # in the environment: a key is never an argument, in a file, or in a log
STORE_PASSWORD_VARIABLE = "OMNI_STORE_PASSWORD"  # of a Redis store, likewise
VOCODER_BACKENDS = ("own", "fairseq")
DTYPES = ("auto", "float32", "bfloat16", "float16")
MODEL_WEIGHTS = ("float", "int8", "fp8", "8bit")  # omni.engine.projection has the same


class ConfigError(ValueError):
    """A setting that cannot work; the message names it and what would."""


@dataclass(frozen=True)
class ServeConfig:
    model_name: str  # as /v1/models lists it
    model: str  # directory: config.json, shards, tokenizer
    vocoder: str  # directory: config.json and g_*
    vocoder_backend: str = "own"

    host: str = "127.0.0.1"
    port: int = 8000
    web_port: int | None = 7860  # None: no page

    # workers
    model_workers: int = 1
    vocoder_workers: int = 1
    slots: int = 8  # answers a model worker generates at once
    waiting: int = 16  # turns that may wait at a model worker before it says busy
    model_threads: int = 1  # CPU threads of one worker's arithmetic
    vocoder_threads: int = 1
    model_gpus: float = 0.0  # share of a GPU per worker
    vocoder_gpus: float = 0.0
    model_dtype: str = "auto"  # bfloat16 on a GPU and on a CPU that multiplies it; else float32
    vocoder_dtype: str = "auto"
    model_weights: str = "float"  # "8bit": fp8 on a GPU of Ada or Hopper, else int8
    prefill_alone: int | None = None  # prompt positions in a step that nobody else shares; by device unless told
    prefill_beside: int | None = None  # beside running answers
    prefill_dry: int | None = None  # beside one whose listener is about to hear nothing
    vocoder_batch: int = 8  # chunks of different turns vocoded together

    # limits
    max_audio_seconds: float = 30.0
    max_upload_bytes: int = 32 * 2**20
    max_new_tokens: int = 256
    max_turns: int = 256  # turns of this controller at once
    max_uploading_bytes: int = 256 * 2**20  # of all requests that are still arriving
    max_messages: int = 128  # of one conversation
    max_utterances: int = 32  # spoken ones among them
    max_text_chars: int = 32_768  # written ones together
    upload_threads: int = 2  # uploads decoded at once
    window_turns: int = 32  # of one session that an answer can refer to; older ones leave its memory
    window_seconds: float = 300.0  # of the user's speech among them
    window_keep: float = 0.8  # share of a limit that is used again once turns had to leave
    session_expiry: float = 3_600.0  # seconds after its last change that a session can be resumed
    max_sessions: int = 1_000  # kept, connected or not; then those idle for longest go
    max_session_bytes: int = 2 * 2**30  # of all kept sessions

    # deadlines, in seconds
    queue_deadline: float = 20.0  # waiting for a slot
    silence_deadline: float = 2.0  # nothing heard from the worker, not even a heartbeat: it hangs or is cut off
    progress_deadline: float = 60.0  # heartbeats but no new token
    vocoder_hedge: float = 1.0  # then the chunk goes to a second vocoder worker as well
    vocoder_deadline: float = 20.0  # then the answer fails
    upload_deadline: float = 30.0  # a question must have arrived by then
    client_deadline: float = 60.0  # a client that takes no event for so long has gone
    drain_deadline: float = 30.0  # how long running turns may go on after Ctrl-C
    attempts: int = 3  # workers that may be lost in a row, without a token or chunk between them

    # live conversations over /v1/realtime
    max_sockets: int = 1024  # conversations at once, silent ones too
    max_message_bytes: int = 4 * 2**20  # 30 s at 24 kHz in base64 are half of it
    allowed_origins: str = ""  # of pages elsewhere that may connect: "https://a.example,https://b.example", or "*"
    audio_burst: float = 60.0  # seconds of sound that may come at once; after that a quarter faster than it is spoken
    audio_ahead: float = 30.0  # seconds of an answer's sound that the client may have and not yet have played
    pause_ms: int = 64  # a silence after which an answer is begun that may still be dropped
    speech_ms: int = 64  # speech that lasts so long begins a question, or interrupts; a session may say otherwise
    idle_deadline: float = 900.0  # a conversation in which the client says nothing, no silence either, has ended
    conversation_deadline: float = 7200.0  # longest conversation

    # chunks, in units
    first_chunk: int = 8
    chunk: int = 80
    chunk_growth: float = 1.25

    # the cluster under it
    store: str = ""  # where sessions are kept: "" in memory, redis://HOST:PORT/N, or a SQLite file
    state_dir: str = ""  # Ray's session, the token, this file
    ray_address: str = ""  # HOST:PORT of the Ray head
    ray_token_file: str = ""
    dashboard: bool = False

    def __post_init__(self) -> None:
        for name in ("slots", "model_threads", "vocoder_threads", "attempts"):
            _need(name, getattr(self, name) >= 1, "must be at least 1", self)
        for name in ("prefill_alone", "prefill_beside", "prefill_dry"):
            _need(name, getattr(self, name) is None or getattr(self, name) >= 1, "must be at least 1", self)
        for name in ("vocoder_batch", "max_new_tokens", "max_turns", "first_chunk", "max_text_chars", "max_sockets"):
            _need(name, getattr(self, name) >= 1, "must be at least 1", self)
        for name in ("window_turns", "max_sessions", "max_session_bytes"):
            _need(name, getattr(self, name) >= 1, "must be at least 1", self)
        for name in ("max_message_bytes", "max_upload_bytes", "max_uploading_bytes"):
            _need(name, getattr(self, name) >= 1, "must be at least 1", self)
        for field in fields(self):
            if field.name.endswith("_deadline") or field.name in (
                "max_audio_seconds",
                "vocoder_hedge",
                "window_seconds",
                "session_expiry",
            ):
                _need(field.name, getattr(self, field.name) > 0, "must be more than 0 seconds", self)
        for name in ("model_workers", "vocoder_workers", "waiting", "model_gpus", "vocoder_gpus"):
            _need(name, getattr(self, name) >= 0, "must not be negative", self)
        for name in ("model_gpus", "vocoder_gpus"):
            share = getattr(self, name)
            _need(name, share <= 1 or share == int(share), "must be a share up to 1, or a whole number of GPUs", self)
        for name in ("port", "web_port"):
            port = getattr(self, name)
            _need(name, port is None or 0 < port < 65536, "must be between 1 and 65535", self)
        _need("window_keep", 0 < self.window_keep <= 1, "must be more than 0 and at most 1", self)
        for name in ("pause_ms", "speech_ms"):
            _need(name, getattr(self, name) >= 0, "must not be negative", self)
        _need("web_port", self.web_port != self.port, "must differ from port", self)
        _need("chunk", self.chunk >= self.first_chunk, f"must be at least first_chunk ({self.first_chunk})", self)
        _need("chunk_growth", self.chunk_growth >= 1, "must be at least 1", self)
        _need("vocoder_backend", self.vocoder_backend in VOCODER_BACKENDS, f"must be one of {VOCODER_BACKENDS}", self)
        _need("model_weights", self.model_weights in MODEL_WEIGHTS, f"must be one of {MODEL_WEIGHTS}", self)
        fp8 = self.model_weights == "fp8"
        _need("model_weights", not fp8 or self.model_gpus > 0, "needs model_gpus; a CPU multiplies int8", self)
        if re.match(r"rediss?://[^/]*@", self.store):
            raise ConfigError(
                f"store names a password or user: set {STORE_PASSWORD_VARIABLE} in the environment instead."
            )
        for name in ("model_dtype", "vocoder_dtype"):
            _need(name, getattr(self, name) in DTYPES, f"must be one of {DTYPES}", self)

    @property
    def adaptors(self) -> tuple[str, ...]:
        """The checkpoint's further adaptors, of which a session may choose one; read once. Raises ConfigError."""
        return _adaptors(self.model)

    def here(self) -> Checkpoint:
        """The checkpoint on this machine, which may be another than the one that made this value."""
        own_vocoder = Path(self.vocoder) == Path(self.model) / "vocoder"
        name = self.model if Path(self.model).is_dir() else self.model_name
        return resolve(name, None if own_vocoder else self.vocoder)

    def write(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(asdict(self), indent=2))

    @classmethod
    def read(cls, path: str | Path) -> "ServeConfig":
        content = json.loads(Path(path).read_text())
        unknown = set(content) - {field.name for field in fields(cls)}
        if unknown:
            raise ConfigError(f"{path}: unknown settings {', '.join(sorted(unknown))}.")
        return cls(**content)


@lru_cache
def _adaptors(model: str) -> tuple[str, ...]:
    try:
        return tuple(adaptors.find(model))
    except adaptors.BadAdaptorName as exc:
        raise ConfigError(str(exc)) from exc


def _need(name: str, holds: bool, rule: str, config: ServeConfig) -> None:
    if not holds:
        raise ConfigError(f"{name} is {getattr(config, name)!r}; it {rule}.")
