"""Samples → how natural people would call the speech, 1 to 5, predicted: DistillMOS (MIT, arXiv 2502.05356).

    rate = Mos.installed()
    rate(samples)         # 4.3; None below two seconds, for which the predictor was not made

The paper measures UTMOS, another predictor of the same opinion; their numbers cannot be compared with each other.
Its package asks for torchaudio, which it needs for reading files only, and which never comes in here (constraints.txt):
install it with `pip install --no-deps distillmos==0.9.1 xls-r-sqa==0.1.0`, as `make test` does.
"""

import contextlib
import io
import sys
import types

import numpy as np
import torch
from torch import nn

from omni.audio.wav import SAMPLE_RATE

SHORTEST = 2.0  # seconds; shorter clips are mostly padding to the predictor and come out too low
INSTALL = "pip install --no-deps distillmos==0.9.1 xls-r-sqa==0.1.0"


class MosMissing(RuntimeError):
    """The predictor is not installed."""


class Mos:
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @classmethod
    def installed(cls) -> "Mos":
        """Raises MosMissing, which says how to install it."""
        ours = sys.modules.get("torchaudio")
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")  # imported, never used
        try:
            from distillmos import ConvTransformerSQAModel

            with contextlib.redirect_stdout(io.StringIO()):  # it tells where its weights lie
                return cls(ConvTransformerSQAModel().eval())
        except ImportError as exc:
            raise MosMissing(f"The MOS predictor is not installed: {INSTALL}") from exc
        finally:
            del sys.modules["torchaudio"]
            if ours is not None:
                sys.modules["torchaudio"] = ours

    @torch.inference_mode()
    def __call__(self, samples: np.ndarray) -> float | None:
        """(S,) float32 at 16 kHz → 1 … 5."""
        if len(samples) < SHORTEST * SAMPLE_RATE:
            return None
        return float(self.model(torch.from_numpy(np.ascontiguousarray(samples, np.float32))[None]))
