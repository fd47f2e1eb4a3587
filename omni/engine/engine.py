"""Many answers at once: add sequences, step, read what each step gave. Knows nothing of HTTP, Ray or sound.

    engine = Engine(omni, EngineConfig(num_slots=8))
    engine.add("turn-1", [Utterance("user", speech=samples)], Sampling(max_new_tokens=64))
    while not engine.idle:
        for output in engine.step():
            print(output.turn_id, output.text, output.units)

`add`, `abort` and `played` may come from any thread; `step` belongs to one, which `wait` puts to sleep until there is
something to do. An answer depends only on its own conversation, settings and forced tokens, whatever runs beside it.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Several
from dataclasses import dataclass

import torch

from omni.engine.projection import WEIGHTS, Projecting
from omni.engine.runner import Result, Runner
from omni.engine.scheduler import GPU_BUDGETS, Piece, Plan, Scheduler, SchedulerConfig
from omni.engine.sequence import (
    AnswerTooLong,
    BadPrompt,
    BadSampling,
    BadSetting,
    EngineError,
    NotFinite,
    OutOfMemory,
    Output,
    PromptTooLong,
    RowFailed,
    Sequence,
    Spoken,
    State,
)
from omni.model.ctc import Collapse
from omni.model.detokenizer import Detokenizer
from omni.model.omni import Omni
from omni.model.prompt import SPEECH, Utterance
from omni.model.sampling import GREEDY, Sampling
from omni.vocoder.streaming import SECONDS_PER_UNIT

logger = logging.getLogger(__name__)

PREFILLS = ("prefill_alone", "prefill_beside", "prefill_dry")


@dataclass(frozen=True)
class EngineConfig:
    num_slots: int = 8
    max_rows: int | None = None  # rows that give a token in one step; all slots unless told
    max_tokens: int | None = None  # longest prompt plus answer; the checkpoint's unless told
    max_answer: int = 256  # longest answer, in tokens
    weights: str = "float"  # as loaded; "int8", "fp8", or "8bit": whichever of them the device multiplies best
    release: bool = False  # the model's own weights go once the engine has its form of them; it then answers only here
    prefill_alone: int | None = None  # prompt positions in a step, see SchedulerConfig; more on a GPU unless told
    prefill_beside: int | None = None
    prefill_dry: int | None = None
    seconds_per_unit: float = SECONDS_PER_UNIT  # of sound, on average: see omni.vocoder.streaming.seconds_per_unit
    kept_speech: int = 256 * 2**20  # bytes of speech embeddings kept for a session's next turn
    fixed_shapes: bool | None = None  # decode in few shapes, recorded as CUDA graphs; on a GPU unless told
    one_behind: bool | None = None  # read a step's tokens while the next one runs; on a GPU unless told

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise BadSetting(f"weights is {self.weights!r}. Select one of {', '.join(WEIGHTS)}.")
        for name in ("num_slots", "max_rows", "max_tokens", "max_answer", *PREFILLS):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise BadSetting(f"{name} is {number}; it must be at least 1.")
        if not 0 < self.seconds_per_unit < math.inf:
            raise BadSetting(f"seconds_per_unit is {self.seconds_per_unit}; a unit lasts more than 0 s.")
        if self.max_rows is not None and self.max_rows > self.num_slots:
            raise BadSetting(f"max_rows is {self.max_rows}; it must be at most num_slots ({self.num_slots}).")

    def scheduler(self, device: torch.device) -> SchedulerConfig:
        """What is told, and else what suits the device."""
        told = {name: getattr(self, name) for name in PREFILLS}
        budgets = dict(GPU_BUDGETS) if device.type == "cuda" else {}
        budgets |= {name: positions for name, positions in told.items() if positions is not None}
        pace = self.seconds_per_unit
        return SchedulerConfig(self.num_slots, self.max_rows or self.num_slots, seconds_per_unit=pace, **budgets)


class Engine:
    def __init__(
        self,
        omni: Omni,
        config: EngineConfig = EngineConfig(),
        scheduling: SchedulerConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.omni, self.config, self.clock = omni, config, clock
        self.max_tokens = config.max_tokens or omni.config.max_tokens
        self.one_behind = omni.device.type != "cpu" if config.one_behind is None else config.one_behind
        fixed_shapes = omni.device.type == "cuda" if config.fixed_shapes is None else config.fixed_shapes
        sizes = config.num_slots, self.max_tokens, config.max_answer
        fixed_rows = (config.max_rows or config.num_slots) if fixed_shapes else 0
        project = Projecting(config.weights, omni.device, config.release)
        try:
            self.runner = Runner(omni, *sizes, project, config.kept_speech, fixed_rows)
        except (MemoryError, RuntimeError) as exc:  # torch's CPU allocator raises RuntimeError
            raise OutOfMemory(
                f"No memory for {config.num_slots} slots of {self.max_tokens} tokens and {config.max_answer} spoken "
                f"tokens: lower num_slots, max_tokens or max_answer. ({exc})"
            ) from exc
        self.scheduler = Scheduler(scheduling or config.scheduler(omni.device))
        self._sequences: dict[str, Sequence] = {}  # those the step knows
        self._unread: list[Result] = []  # launched, not read yet
        self._changed = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._live: dict[str, Sequence] = {}  # added, and neither finished nor aborted
        self._failed: list[Output] = []

    def warm_up(self) -> None:
        """Before the first sequence: record every shape of the decode step, where the device does that."""
        if self.runner.decoding is not None:
            self.runner.decoding.warm_up()

    # --- from any thread ---------------------------------------------------------------------------------------------

    def add(
        self,
        turn_id: str,
        conversation: Several[Utterance],
        sampling: Sampling = GREEDY,
        forced: Several[int] = (),
        received_units: int = 0,
        adaptor: str = "",
    ) -> Sequence:
        """Queue an answer. What is wrong with it comes as its only Output, from the next step."""
        told = tuple(conversation), sampling, tuple(forced), received_units
        return self._add(Sequence(turn_id, *told, self.clock(), adaptor=adaptor))

    def read(self, turn_id: str, conversation: Several[Utterance], adaptor: str = "") -> Sequence:
        """Take in what the next question will come after, so that only the question remains to be read.

        Its only Output has `finish` "read". It yields to everybody who asks; nobody need wait for it before asking.
        """
        nothing = Sampling(max_new_tokens=1)  # as short as an answer can be
        ahead = Sequence(turn_id, tuple(conversation), nothing, arrived=self.clock(), reads_ahead=True, adaptor=adaptor)
        return self._add(ahead)

    def abort(self, turn_id: str) -> None:
        """Forget a turn: the next step frees its slot, and gives nothing more of it. An unknown turn is no error."""
        with self._changed:
            if self._live.pop(turn_id, None):
                self._command(lambda: self._drop(turn_id))

    def played(self, turn_id: str, seconds: float) -> None:
        """The listener has heard so much of the answer by now."""
        told_at = self.clock()
        with self._changed:
            self._command(lambda: self._note_played(turn_id, told_at, seconds))

    @property
    def running(self) -> int:
        """Turns that have a slot."""
        return len(self.scheduler.admitted)

    @property
    def waiting(self) -> int:
        """Turns that wait for one, and what was asked for and not done yet."""
        return len(self.scheduler.waiting) + len(self._commands)

    @property
    def idle(self) -> bool:
        with self._changed:
            return not (self._commands or self._failed or self._unread) and self.scheduler.idle

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until there is something to step for, or someone calls `wake`. False where there is nothing yet."""
        with self._changed:
            if not self._commands and not self._unread and self.scheduler.idle:
                self._changed.wait(timeout)
        return not self.idle

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # --- from the stepping thread ------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """schedule → run → postprocess. One token for every running row; nothing where there is nothing to do."""
        self._obey()
        plan = self.scheduler.schedule(self.clock())
        results = self._run(plan)
        outputs = self._postprocess(results) + self._end_reading()
        failed, self._failed = self._failed, []
        return failed + outputs

    def _obey(self) -> None:
        while True:
            with self._changed:
                if not self._commands:
                    return
                command = self._commands.popleft()
            command()

    def _run(self, plan: Plan) -> list[Result]:
        for place in plan.places:
            self.runner.reuse(place)
        results = self._decode(plan.decode) if plan.decode else []
        if plan.encode:
            self._hear(plan.encode)
        heard = [piece for piece in plan.prefill if piece.sequence.state is State.PREFILL]  # whose speech was encoded
        return results + self._prefill([piece for piece in heard if self._embed(piece.sequence)])

    def _hear(self, chosen: list[tuple[Sequence, Spoken]]) -> None:
        """Encode together. Where that raises, each utterance alone, so that only those that are at fault end."""
        try:
            self.runner.hear(chosen)
        except Exception as exc:
            if len(chosen) > 1:
                logger.warning("Encoding %d utterances failed (%s): encoding them one by one.", len(chosen), exc)
                for sequence, spoken in chosen:
                    if sequence.state is State.PREFILL:
                        self._hear([(sequence, spoken)])
                return
            self._fail(chosen[0][0], _as_engine_error(exc))

    def _embed(self, sequence: Sequence) -> bool:
        """Whether there is something to prefill it from."""
        if sequence.embeds is None:
            try:
                self.runner.embed(sequence)
            except Exception as exc:
                self._fail(sequence, _as_engine_error(exc))
                return False
            self._mark(sequence, "encoded")
        return True

    def _prefill(self, pieces: list[Piece]) -> list[Result]:
        """All pieces in one call. Where that raises, each alone, so that only those that are at fault end."""
        if not pieces:
            return []
        try:
            results = self.runner.prefill(pieces)
        except Exception as exc:
            if len(pieces) == 1:
                self._fail(pieces[0].sequence, _as_engine_error(exc))
                return []
            logger.warning("A prefill of %d prompts failed (%s): reading them one by one.", len(pieces), exc)
            return [result for each in pieces for result in self._prefill([each])]
        for piece in pieces:
            self.scheduler.prefilled(piece)
            if piece.last:
                piece.sequence.embeds = None
                self._mark(piece.sequence, "prefilled")
        for result in results:
            for sequence in result.sequences:
                self._launched(sequence, result.num_tokens)
        return results

    def _decode(self, sequences: list[Sequence]) -> list[Result]:
        """All rows in one call. Where that raises, each row alone, so that only those that are at fault end."""
        try:
            results = [self.runner.decode(sequences)]
        except Exception as exc:
            if len(sequences) == 1:
                self._fail(sequences[0], _as_engine_error(exc))
                return []
            logger.warning("A step of %d rows failed (%s): running its rows one by one.", len(sequences), exc)
            return [result for each in sequences for result in self._decode([each])]
        for each in sequences:
            self._launched(each, 1)
        return results

    def _launched(self, sequence: Sequence, num_tokens: int) -> None:
        sequence.num_launched += num_tokens
        if sequence.num_launched >= sequence.limit and sequence.state is State.RUNNING:
            sequence.state = State.ENDING

    def _postprocess(self, launched: list[Result]) -> list[Output]:
        """Text and units of what is read now: this step's results, or where the device runs ahead the last one's."""
        ready, self._unread = (self._unread, launched) if self.one_behind else (launched, [])
        outputs = []
        for result in ready:
            for sequence, tokens, classes, finite in result.fetch():
                if sequence.state is State.FINISHED or not self._is_live(sequence):
                    continue  # ended or aborted while this was under way
                if not finite:
                    self._fail(sequence, NotFinite("The model gave NaN or infinity."))
                    continue
                outputs.append(self._give(sequence, tokens, classes))
        return outputs

    def _end_reading(self) -> list[Output]:
        """Their slots are free at once, and remember. Who was aborted during this step is told nothing."""
        done = [each for each in self.scheduler.admitted if self.scheduler.has_read(each)]
        outputs = []
        for each in done:
            self._mark(each, "finished")
            if self._end(each):
                outputs.append(Output(each.turn_id, finish="read", timings=dict(each.timings)))
        return outputs

    def _give(self, sequence: Sequence, tokens: list[int], classes: list[list[int]]) -> Output:
        given, text, units, ends = [], "", [], []
        for token_id, positions in zip(tokens, classes, strict=True):
            number = len(sequence.tokens)
            sequence.tokens.append(token_id)
            delta = sequence.detokenize(token_id)
            units += sequence.collapse(positions)
            if token_id in self.omni.config.eos_token_ids:
                sequence.finish = "stop"
            elif number + 1 == sequence.limit:
                sequence.finish = "length"
            if sequence.finish:
                delta += sequence.detokenize.finish()
            sequence.num_chars += len(delta)
            if number >= len(sequence.forced):
                given.append(token_id)
                text += delta
                ends.append((sequence.num_units + len(units), sequence.num_chars))
            if sequence.finish:
                break
        unheard = units[max(sequence.received_units - sequence.num_units, 0) :]
        first = "first_token" not in sequence.timings
        self._mark(sequence, "first_token")
        self.scheduler.emitted(sequence, len(units), self.clock())
        if sequence.finish:
            self._mark(sequence, "finished")
            self._end(sequence)
        timings = dict(sequence.timings) if first or sequence.finish else {}
        told = tuple(given), text, tuple(unheard)
        return Output(sequence.turn_id, *told, sequence.finish, None, timings, tuple(ends))

    # --- commands ----------------------------------------------------------------------------------------------------

    def _add(self, sequence: Sequence) -> Sequence:
        turn_id = sequence.turn_id
        with self._changed:
            if turn_id in self._live:
                raise ValueError(f"The turn {turn_id!r} is being answered already.")
            self._live[turn_id] = sequence
            self._command(lambda: self._begin(sequence))
        return sequence

    def _command(self, command: Callable[[], None]) -> None:
        self._commands.append(command)
        self._changed.notify_all()

    def _begin(self, sequence: Sequence) -> None:
        if not self._is_live(sequence):
            return  # aborted before it began
        sequence.collapse = Collapse(self.omni.config.blank)
        sequence.detokenize = Detokenizer(self.omni.tokenizer)
        self._sequences[sequence.turn_id] = sequence
        self.scheduler.add(sequence)
        try:
            self._check(sequence)
        except Exception as exc:
            self._fail(sequence, exc if isinstance(exc, EngineError) else BadPrompt(str(exc)))

    def _check(self, sequence: Sequence) -> None:
        self.runner.read(sequence)
        limit, prompt = sequence.limit, sequence.prompt_length
        if problem := _problem(sequence.sampling):
            raise BadSampling(problem)
        if limit < 1:
            raise AnswerTooLong(f"max_new_tokens is {limit}: an answer has at least one token.")
        if prompt >= self.max_tokens:
            raise PromptTooLong(f"The conversation takes {prompt} positions; a slot has {self.max_tokens}.")
        if limit > self.config.max_answer:
            raise AnswerTooLong(f"max_new_tokens is {limit}; this engine speaks up to {self.config.max_answer}.")
        if prompt + limit > self.max_tokens:
            raise AnswerTooLong(
                f"The conversation takes {prompt} positions of {self.max_tokens}: no room for {limit} new tokens."
            )
        if len(sequence.forced) > limit:
            raise AnswerTooLong(f"{len(sequence.forced)} tokens are forced, of at most {limit}.")
        if any(not 0 <= token_id < self.omni.config.vocab_size for token_id in sequence.forced):
            raise BadPrompt("A forced token is not in the vocabulary.")
        if any(not 0 <= each < self.omni.config.vocab_size for each in sequence.prompt_ids if each != SPEECH):
            raise BadPrompt("A token of an earlier answer is not in the vocabulary: it was another model's.")

    def _drop(self, turn_id: str) -> None:
        if sequence := self._sequences.pop(turn_id, None):
            self.scheduler.remove(sequence)

    def _note_played(self, turn_id: str, told_at: float, seconds: float) -> None:
        if sequence := self._sequences.get(turn_id):
            sequence.played = (told_at, seconds)
            sequence.playing_since = sequence.playing_since or told_at

    def _fail(self, sequence: Sequence, error: EngineError) -> None:
        logger.warning("turn %s ends with %s: %s", sequence.turn_id, error.code, error)
        self.runner.forget(sequence)
        sequence.error = error
        self._mark(sequence, "finished")
        if self._end(sequence):
            self._failed.append(Output(sequence.turn_id, error=error, timings=dict(sequence.timings)))

    def _end(self, sequence: Sequence) -> bool:
        """Whether anybody is to be told: not where it was aborted meanwhile."""
        self._sequences.pop(sequence.turn_id, None)
        self.scheduler.remove(sequence, clean=sequence.error is None)
        with self._changed:
            live = self._live.get(sequence.turn_id) is sequence
            if live:
                del self._live[sequence.turn_id]
        return live

    def _is_live(self, sequence: Sequence) -> bool:
        with self._changed:
            return self._live.get(sequence.turn_id) is sequence

    def _mark(self, sequence: Sequence, event: str) -> None:
        sequence.timings.setdefault(event, self.clock() - sequence.arrived)


def _as_engine_error(exc: Exception) -> EngineError:
    error = RowFailed(f"{type(exc).__name__}: {exc}")
    error.__cause__ = exc
    return error


def _problem(sampling: Sampling) -> str | None:
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0.0):
        return f"temperature is {sampling.temperature}; it is a number from 0 up."
    if not 0.0 < sampling.top_p <= 1.0:
        return f"top_p is {sampling.top_p}; it is above 0 and at most 1."
    return None
