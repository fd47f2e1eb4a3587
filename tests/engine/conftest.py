"""Small models and the reference's answers, made once; and a clock that only moves when told."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from omni.audio import wav
from omni.engine.engine import Engine
from omni.engine.sequence import EngineError, Output
from omni.model import checkpoint, tiny
from omni.model.omni import Omni
from omni.model.prompt import Utterance
from omni.model.sampling import GREEDY, Sampling

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Omni:
    """The goldens' checkpoint: padded input, three unit decoder layers."""
    return checkpoint.load(GOLDEN / "checkpoint" / "Llama-3.1-8B-Omni-tiny")


@pytest.fixture(scope="session")
def omni(tmp_path_factory) -> Omni:
    """The tiny checkpoint: true-length input."""
    directory = tmp_path_factory.mktemp("tiny")
    tiny.write(directory)
    return checkpoint.load(directory)


@pytest.fixture(scope="session")
def questions() -> list[list[Utterance]]:
    """Conversations of several lengths, spoken and written."""
    spoken = [wav.read(GOLDEN / "audio" / f"utt{i}.wav") for i in (0, 1)]
    return [
        [Utterance("user", speech=spoken[0])],
        [Utterance("user", text="Hello.")],
        [Utterance("user", speech=spoken[1][:40_000])],
        [
            Utterance("user", speech=spoken[0][:16_000]),
            Utterance("assistant", text="Yes?"),
            Utterance("user", speech=spoken[0][8_000:]),
        ],
        [Utterance("system", text="Speak slowly."), Utterance("user", text="What is a mel, and how loud is it?")],
    ]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@dataclass
class Answer:
    """What a turn's outputs add up to."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    units: list[int] = field(default_factory=list)
    finish: str | None = None
    error: EngineError | None = None

    def take(self, output: Output) -> None:
        assert self.finish is None and self.error is None, "output after the last one"
        self.tokens += output.token_ids
        self.text += output.text
        self.units += output.units
        self.finish, self.error = output.finish, output.error


def run(engine: Engine) -> dict[str, Answer]:
    """Step until nothing is left."""
    answers: dict[str, Answer] = defaultdict(Answer)
    while not engine.idle:
        for output in engine.step():
            answers[output.turn_id].take(output)
    return answers


def reference(omni: Omni, question: Sequence[Utterance], sampling: Sampling = GREEDY, forced=(), adaptor="") -> Answer:
    """The slow, obvious path's answer."""
    steps = list(omni.answer(question, sampling, forced, adaptor))
    units = [unit for step in steps for unit in step.units]
    return Answer([step.token_id for step in steps], "".join(step.text for step in steps), units, steps[-1].finish)
