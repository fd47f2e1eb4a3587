"""The words that controller, workers and clients exchange. Plain frozen data: no torch, no Ray, no HTTP.

Between controller and model worker: one `TurnRequest` in, a stream of `Tokens` out. Between controller and vocoder
worker: `omni.vocoder.streaming.Chunk` in, `ChunkReply` out. Between controller and client: the events at the end.
Every message of a turn carries its epoch (raised by cancel and recovery) and a running number, so that late or doubled
output is dropped.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Message:
    """One turn of the conversation: speech (int16 LE, mono, 16 kHz), text, or an earlier answer's own tokens."""

    role: str  # "system", "user" or "assistant"
    pcm16: bytes | None = None
    text: str | None = None
    token_ids: tuple[int, ...] | None = None  # of an answer as it was generated, its end token left out; before text


@dataclass(frozen=True)
class Sampling:
    temperature: float = 0.0  # 0 is greedy, as in the paper
    top_p: float = 1.0
    top_k: int = 50  # active only when sampling, as in the published code
    max_new_tokens: int = 256
    seed: int = 0


@dataclass(frozen=True)
class TurnRequest:
    """What a model worker needs to answer, or to go on answering where another worker stopped.

    `forced_tokens` are tokens the listener may already have heard: they are fed, not chosen again, and not sent again.
    `received_units` is the number of units already received: they are computed again but not sent again.
    """

    turn_id: str
    epoch: int
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    forced_tokens: tuple[int, ...] = ()
    received_units: int = 0
    prefer: str = ""  # the model worker that answered this session before: it has its keys and values
    adaptor: str = ""  # that hears this session's speech; the checkpoint's own unless named


@dataclass(frozen=True)
class ReadRequest:
    """What a model worker needs to read ahead: all that was said before a question that is still being said."""

    turn_id: str
    messages: tuple[Message, ...]
    prefer: str = ""  # as in TurnRequest
    adaptor: str = ""  # likewise


@dataclass(frozen=True)
class Tokens:
    """What one or more steps of the model worker gave: new tokens, the text and the units they added.

    Without tokens, units and finish it is a heartbeat: the worker lives; the turn waits for a slot, or is prefilled.
    """

    epoch: int
    number: int  # 0, 1, 2 … within the epoch
    token_ids: tuple[int, ...]
    text: str
    units: tuple[int, ...]
    finish: str | None = None  # "stop" or "length" in the last message
    timings: dict[str, float] = field(default_factory=dict)  # seconds by stage; in the first and the last message
    waiting: bool = False  # for a slot
    worker: str = ""  # who says so
    num_prompt_tokens: int = 0  # positions of the prompt, speech included; 0 where it is not said
    num_cached_tokens: int = 0  # those among them that the worker held already, and did not read again
    ends: tuple[tuple[int, int], ...] = ()  # of each token: units and characters of the whole answer up to its end


# --- events, as a client sees them ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextDelta:
    text: str


@dataclass(frozen=True)
class AudioDelta:
    pcm16: bytes  # int16 LE, mono, 16 kHz
    first_sample: int  # position of its first sample in the answer


@dataclass(frozen=True)
class Done:
    text: str
    finish: str
    num_tokens: int
    num_units: int
    num_samples: int
    timings: dict[str, float] = field(default_factory=dict)  # seconds: first_text, first_audio, total, …
    num_prompt_tokens: int = 0  # positions of the prompt, speech included
    num_cached_tokens: int = 0  # those among them that the model worker held already


@dataclass(frozen=True)
class Failed:
    code: str
    message: str
    status: int
    retry_after: float | None = None


Event = TextDelta | AudioDelta | Done | Failed
