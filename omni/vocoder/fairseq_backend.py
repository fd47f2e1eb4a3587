"""The reference vocoder, fairseq's CodeHiFiGANVocoder, behind the interface of ours. Needs `make fairseq`.

    vocoder = fairseq_backend.load(directory)         # instead of omni.vocoder.checkpoint.load(directory)
    render(vocoder, chunks)

fairseq's class takes one answer at a time and cannot tell a chunk from an answer. So it is given a chunk's frames as
units without durations, and its duration predictor is asked apart: it streams as exactly as ours, but row by row.
fairseq 0.12.2 was written for Python 3.10 and sets up logging when imported: both are held off meanwhile.
"""

import contextlib
import copy
import dataclasses
import importlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn


class FairseqMissing(ImportError):
    """The fairseq backend was asked for where fairseq is not installed."""


def load(
    directory: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> "FairseqVocoder":
    """A folder with config.json and g_* → fairseq's vocoder. Durations are always decided in float32."""
    config = json.loads((Path(directory) / "config.json").read_text())
    checkpoints = sorted(Path(directory).glob("g_*"))
    if not checkpoints:
        raise FileNotFoundError(f"{directory} holds no vocoder checkpoint: expected a file named g_….")
    vocoder = FairseqVocoder(config, checkpoints[-1])
    vocoder.vocoder.to(dtype)
    return vocoder.to(device).eval().requires_grad_(False)


class FairseqVocoder(nn.Module):
    """As CodeHiFiGAN: units (B, N) → durations (B, N) → samples (B, S). Rows are vocoded one by one."""

    def __init__(self, config: dict[str, Any], checkpoint: Path) -> None:
        super().__init__()
        self.config = config
        # fairseq does not map a checkpoint saved on a GPU to a machine without one: read it here, hand over a copy.
        readable = io.BytesIO()
        torch.save(torch.load(checkpoint, map_location="cpu", weights_only=True), readable)
        readable.seek(0)
        module = import_vocoder_module()
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # "Removing weight norm..."
            warnings.simplefilter("ignore")  # weight_norm's FutureWarning
            self.vocoder = module.CodeHiFiGANVocoder(readable, config)
        model = self.vocoder.model
        self.log_durations = copy.deepcopy(nn.Sequential(model.dict, model.dur_predictor))  # (B, N) → (B, N)

    def durations(self, units: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """units (B, N), lengths (B,) → frames per unit (B, N), 0 beyond a row's length."""
        durations = torch.zeros_like(units)
        for row, length in enumerate(lengths.tolist()):
            frames = torch.round(torch.exp(self.log_durations(units[row : row + 1, :length])) - 1).long()
            durations[row, :length] = frames.clamp(min=1)[0]
        return durations

    def forward(self, units: torch.Tensor, durations: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """units and durations (B, N), lengths (B,) → samples (B, S), zeros beyond a row's end."""
        waves = []
        for row, length in enumerate(lengths.tolist()):
            frames = units[row, :length].repeat_interleave(durations[row, :length])[None]  # (1, F)
            waves.append(self.vocoder({"code": frames}, dur_prediction=False).reshape(-1).float())
        return nn.utils.rnn.pad_sequence(waves, batch_first=True)


def import_vocoder_module() -> ModuleType:
    """fairseq.models.text_to_speech.vocoder, whatever the Python; the process looks afterwards as it did before."""
    try:
        with _lenient_dataclasses(), _same_logging(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("fairseq.models.text_to_speech.vocoder")
    except ModuleNotFoundError as exc:
        raise FairseqMissing(f"{exc}. The fairseq backend needs fairseq 0.12.2: run `make fairseq`.") from exc


@contextlib.contextmanager
def _lenient_dataclasses() -> Iterator[None]:
    """Let a dataclass be a field's default, as in fairseq's configs: Python 3.11 refuses unhashable defaults."""
    original = dataclasses._process_class  # type: ignore[attr-defined]

    def keep_hash(*args: Any, **kwargs: Any) -> type:
        cls = original(*args, **kwargs)
        if cls.__hash__ is None:
            cls.__hash__ = object.__hash__
        return cls

    dataclasses._process_class = keep_hash  # type: ignore[attr-defined]
    try:
        yield
    finally:
        dataclasses._process_class = original  # type: ignore[attr-defined]


@contextlib.contextmanager
def _same_logging() -> Iterator[None]:
    """Importing fairseq gives the root logger a handler and a level, and says what else could be installed."""
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.disable(disabled)
