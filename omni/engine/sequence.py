"""One answer in the making, as the engine sees it, and what may go wrong with one. No torch.

EngineError             its neighbours never notice; `code` and `message` say what was wrong
├── BadPrompt           the conversation fits no template
├── BadSampling         settings that no token can be chosen with
├── UnknownAdaptor      the checkpoint has none of this name
├── SpeechTooLong       an utterance longer than the encoder's window
├── PromptTooLong       prompt longer than a slot
├── AnswerTooLong       prompt plus wanted tokens longer than a slot
├── NotFinite           the model gave NaN or infinity for this sequence
└── RowFailed           anything else that was raised while this sequence alone was computed
BadSetting, OutOfMemory at start: they name the setting to change
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # both come with torch
    from omni.model.prompt import Utterance
    from omni.model.sampling import Sampling


class EngineError(Exception):
    code = "engine_error"


class BadPrompt(EngineError):
    code = "bad_prompt"


class BadSampling(EngineError):
    code = "bad_sampling"


class UnknownAdaptor(EngineError):
    code = "adaptor_not_found"


class SpeechTooLong(EngineError):
    code = "speech_too_long"


class PromptTooLong(EngineError):
    code = "prompt_too_long"


class AnswerTooLong(EngineError):
    code = "answer_too_long"


class NotFinite(EngineError):
    code = "not_finite"


class RowFailed(EngineError):
    code = "row_failed"


class BadSetting(ValueError):
    code = "bad_setting"


class OutOfMemory(RuntimeError):
    code = "out_of_memory"


class State(Enum):
    WAITING = "waiting"  # for a slot
    PREFILL = "prefill"  # has a slot, its prompt is being read
    RUNNING = "running"  # gives a token a step
    ENDING = "ending"  # its last token is under way on the device
    FINISHED = "finished"


@dataclass(frozen=True)
class Spoken:
    """One utterance of a prompt: what its content is called, and where in the prompt its embeddings are."""

    key: bytes
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


@dataclass(eq=False)
class Sequence:
    """`forced` tokens are fed instead of chosen, and not given out; nor are the first `received_units` units."""

    turn_id: str
    conversation: tuple[Utterance, ...]
    sampling: Sampling
    forced: tuple[int, ...] = ()
    received_units: int = 0
    arrived: float = 0.0
    reads_ahead: bool = False  # gives no token: its slot shall remember what the next question comes after
    adaptor: str = ""  # that hears its speech; the checkpoint's own unless named

    state: State = State.WAITING
    slot: int | None = None
    prompt_ids: list[int] = field(default_factory=list)
    prompt_length: int = 0  # embeddings, the speech's among them
    keys: list[Hashable] = field(default_factory=list)  # what each of these positions is, see prefixes
    spoken: list[Spoken] = field(default_factory=list)
    said: dict[bytes, Any] = field(default_factory=dict)  # samples of each, until they are encoded
    num_reused: int = 0  # positions that a slot still remembered
    heard: dict[bytes, Any] = field(default_factory=dict)  # speech embeddings, until `embeds` holds them
    embeds: Any = None  # (P + forced, D) on the device, until they are prefilled
    num_prefilled: int = 0
    num_launched: int = 0  # tokens the device has been asked for
    tokens: list[int] = field(default_factory=list)
    num_units: int = 0
    num_chars: int = 0  # of the answer's text, forced tokens' too
    collapse: Any = None
    detokenize: Any = None
    finish: str | None = None
    error: EngineError | None = None
    timings: dict[str, float] = field(default_factory=dict)  # seconds since arrival, by what had happened

    playing_since: float | None = None  # when its first audio can have started
    played: tuple[float, float] | None = None  # (when told, seconds played by then): better than our guess

    @property
    def num_to_prefill(self) -> int:
        """Prompt, and the forced tokens but the last: that one is fed by the first step."""
        return self.prompt_length + max(len(self.forced) - 1, 0)

    @property
    def unheard(self) -> list[Spoken]:
        """Utterances to be encoded before anything is prefilled: those that nothing remembers."""
        if self.embeds is not None:
            return []
        return [each for each in self.spoken if each.stop > self.num_reused and each.key not in self.heard]

    @property
    def limit(self) -> int:
        return self.sampling.max_new_tokens

    def forced_token(self, step: int) -> int | None:
        return self.forced[step] if step < len(self.forced) else None


@dataclass(frozen=True)
class Output:
    """What a step gave one turn. The last one has `error` or `finish`: "stop", "length", or "read" who only read."""

    turn_id: str
    token_ids: tuple[int, ...] = ()
    text: str = ""
    units: tuple[int, ...] = ()
    finish: str | None = None
    error: EngineError | None = None
    timings: dict[str, float] = field(default_factory=dict)  # in a turn's first and last output
    ends: tuple[tuple[int, int], ...] = ()  # of each token: units and characters of the whole answer up to its end
