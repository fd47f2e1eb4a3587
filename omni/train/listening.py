"""What a unit decoder would say now, to listen to: held-out answers as WAV files, every so many steps.

listen = Listening(Path("runs/mini/export/vocoder"), Path("runs/mini/stage2"), heldout[:4], blank)
listen(decoder, step=2000)        # samples/00002000/0.wav …; samples/recorded/ has the recordings' own units
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from omni.audio import wav
from omni.model import ctc
from omni.model.unit_decoder import UnitDecoder
from omni.train import keep
from omni.vocoder import checkpoint
from omni.vocoder.render import offline


class ListeningError(ValueError):
    """The vocoder does not speak these units."""


class Answer(Protocol):
    """As stage 2 learns it."""

    @property
    def text(self) -> str: ...

    @property
    def hidden(self) -> Tensor: ...  # (M, D_llm)

    @property
    def units(self) -> list[int]: ...


class Listening:
    def __init__(self, vocoder: Path, output: Path, answers: Sequence[Answer], blank: int) -> None:
        self.vocoder, self.folder, self.answers, self.blank = (
            checkpoint.load(vocoder),
            output / "samples",
            answers,
            blank,
        )
        if self.vocoder.num_units != blank:
            raise ListeningError(f"{vocoder} speaks {self.vocoder.num_units} units; this voice has {blank}.")
        for number, answer in enumerate(answers):
            self._write("recorded", number, answer.units)
            keep.text(self.folder / f"{number}.txt", answer.text + "\n")

    @torch.inference_mode()
    def __call__(self, decoder: UnitDecoder, step: int) -> None:
        for number, answer in enumerate(self.answers):
            classes = decoder(answer.hidden.float()[None])[0].argmax(-1).tolist()
            self._write(f"{step:08}", number, ctc.collapse(classes, self.blank))

    def _write(self, name: str, number: int, units: Sequence[int]) -> None:
        samples = offline(self.vocoder, units) if units else np.zeros(0, np.float32)
        keep.whole(self.folder / name / f"{number}.wav", lambda path: wav.write(path, samples))
