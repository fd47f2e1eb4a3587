"""The checkpoint behind a model worker's `Engine`: the reference path, all running answers stepped in turn."""

import time
from collections import deque
from collections.abc import Iterator

import torch

from omni.audio.wav import from_pcm16
from omni.model import checkpoint
from omni.model.omni import Omni, Step
from omni.model.prompt import PromptError, Utterance
from omni.model.sampling import Sampling
from omni.serve import errors
from omni.serve.config import ServeConfig
from omni.serve.model_worker import Output
from omni.serve.protocol import Message, TurnRequest


def load(config: ServeConfig) -> "ReferenceEngine":
    torch.set_num_threads(config.model_threads)
    device = "cuda" if config.model_gpus > 0 else "cpu"
    omni = checkpoint.load(config.here().model, device, getattr(torch, config.model_dtype))
    return ReferenceEngine(omni, config.slots)


class ReferenceEngine:
    """`Engine` over `Omni.answer`: slow and obvious, a slot is a generator."""

    def __init__(self, omni: Omni, slots: int) -> None:
        self._omni = omni
        self._slots = slots
        self._queue: deque[TurnRequest] = deque()
        self._answers: dict[tuple[str, int], Iterator[Output]] = {}

    @property
    def running(self) -> int:
        return len(self._answers)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def add(self, request: TurnRequest) -> None:
        self._queue.append(request)

    def abort(self, turn_id: str, epoch: int) -> None:
        self._answers.pop((turn_id, epoch), None)
        self._queue = deque(each for each in self._queue if (each.turn_id, each.epoch) != (turn_id, epoch))

    def step(self) -> list[Output]:
        while self._queue and len(self._answers) < self._slots:
            request = self._queue.popleft()
            self._answers[request.turn_id, request.epoch] = self._answer(request)
        outputs = [next(answer) for answer in self._answers.values()]
        for output in outputs:
            if output.finish is not None or output.error is not None:
                del self._answers[output.turn_id, output.epoch]
        return outputs

    def _answer(self, request: TurnRequest) -> Iterator[Output]:
        key = request.turn_id, request.epoch
        try:
            start = time.monotonic()
            units_to_skip, timings = request.received_units, {}
            steps = self._omni.answer(_conversation(request), _sampling(request), request.forced_tokens)
            for number, step in enumerate(steps):
                if number == 0:
                    timings = {"prefill": time.monotonic() - start}
                skipped = min(units_to_skip, len(step.units))
                units_to_skip -= skipped
                yield _output(key, step, number < len(request.forced_tokens), skipped, timings)
                timings = {}
        except PromptError as exc:
            yield Output(*key, error=errors.BadRequest(str(exc)))
        except Exception as exc:
            yield Output(*key, error=exc)


def _output(key: tuple[str, int], step: Step, forced: bool, skipped: int, timings: dict[str, float]) -> Output:
    tokens, text = ((), "") if forced else ((step.token_id,), step.text)
    return Output(*key, tokens, text, step.units[skipped:], step.finish, timings)


def _conversation(request: TurnRequest) -> list[Utterance]:
    return [_utterance(message) for message in request.messages]


def _utterance(message: Message) -> Utterance:
    speech = None if message.pcm16 is None else from_pcm16(message.pcm16)
    return Utterance(message.role, message.text, speech)


def _sampling(request: TurnRequest) -> Sampling:
    own = request.sampling
    return Sampling(own.temperature, own.top_p, own.top_k, own.max_new_tokens, own.seed)
