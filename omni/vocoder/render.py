"""Chunks in, PCM out: the one place where a planned chunk meets the vocoder. Batched over answers; keeps no state.

    replies = render(vocoder, chunks)        # chunks of any answers, in any order
    samples = offline(vocoder, units)        # the slow, obvious path: a whole answer at once

A chunk's frames are cut to what its new samples can hear, so an open edge costs `history_frames` or `context_frames`
and the rounding up to a common width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from omni.audio.wav import to_pcm16
from omni.vocoder.source_filter import SourceFilter
from omni.vocoder.streaming import (
    Chunk,
    ChunkError,
    ChunkReply,
    context_frames,
    history_frames,
    samples_per_frame,
)

# Convolutions on a CPU are compiled for every width they meet, and 1024 of them are kept: about ten widths.
WIDTH_STEP = 16  # frames


class Vocoder(Protocol):
    """Ours (code_hifigan, source_filter) or fairseq's (fairseq_backend), as rendering needs it. lengths: in units."""

    config: Mapping[str, Any]

    def durations(self, units: Tensor, lengths: Tensor) -> Tensor: ...  # (B, N) → (B, N) frames

    def __call__(self, units: Tensor, durations: Tensor, lengths: Tensor) -> Tensor: ...  # → (B, S)

    def parameters(self) -> Iterator[Tensor]: ...


@torch.inference_mode()
def render(vocoder: Vocoder, chunks: Sequence[Chunk]) -> list[ChunkReply | ChunkError]:
    """One reply per chunk, in order. A chunk that cannot be rendered gets its error; its neighbours get their audio."""
    outcomes: list[ChunkReply | ChunkError | None] = [_refusal(vocoder, chunk) for chunk in chunks]
    good = [chunk for chunk, refusal in zip(chunks, outcomes, strict=True) if refusal is None]
    replies = iter(_render(vocoder, good))
    return [next(replies) if outcome is None else outcome for outcome in outcomes]


@torch.inference_mode()
def warm_up(vocoder: Vocoder, num_widths: int = 3) -> None:
    """Render the narrowest chunks once, those an answer begins with: compiling a width costs twice its sound.

    Measured with the mini checkpoint's former CodeHiFiGAN, in float32: a fresh worker's first chunk 46 ms, then 15 ms.
    """
    for width in range(WIDTH_STEP, (num_widths + 1) * WIDTH_STEP, WIDTH_STEP):
        frames = torch.zeros(1, width, dtype=torch.long, device=_device(vocoder))
        lengths = torch.tensor([width], device=frames.device)
        vocoder.durations(frames, lengths)
        vocoder(frames, torch.ones_like(frames), lengths)


@torch.inference_mode()
def offline(vocoder: Vocoder, units: Sequence[int]) -> np.ndarray:
    """All units of an answer → (S,) float32 in (-1, 1)."""
    if len(units) == 0:
        return np.zeros(0, dtype=np.float32)
    if refusal := _refusal(vocoder, Chunk.whole(units)):
        raise refusal
    batch, lengths = _pad([units], _device(vocoder))  # (1, N)
    wave = vocoder(batch, vocoder.durations(batch, lengths), lengths)  # (1, S)
    return wave[0].float().cpu().numpy()


def _refusal(vocoder: Vocoder, chunk: Chunk) -> ChunkError | None:
    num_units, context = vocoder.config["num_embeddings"], context_frames(vocoder.config)
    wrong = [unit for unit in chunk.units if not 0 <= unit < num_units]
    if wrong:
        return ChunkError(f"Chunk {chunk.number}: unit {wrong[0]} is not one of the vocoder's 0 … {num_units - 1}.")
    if not chunk.final and (held_back := chunk.context_frames) < context:
        return ChunkError(f"Chunk {chunk.number} holds back {held_back} frames; this vocoder needs {context}.")
    history = history_frames(vocoder.config)
    if not chunk.first and chunk.skip_frames < history:
        return ChunkError(
            f"Chunk {chunk.number} brings {chunk.skip_frames} frames of what came before; this vocoder needs {history}."
        )
    return None


@dataclass(frozen=True)
class _Window:
    """The frames of a chunk that its new samples can hear, and where the new ones lie among them."""

    frames: list[int]  # the unit of each
    skip: int
    num_new: int
    open_left: bool  # the answer began before
    open_right: bool  # and goes on after
    phase: float  # of the pulses where the new frames begin


def _render(vocoder: Vocoder, chunks: list[Chunk]) -> list[ChunkReply | ChunkError]:
    history, context = history_frames(vocoder.config), context_frames(vocoder.config)
    durations = _durations(vocoder, chunks)
    windows = [_window(chunk, own, history, context) for chunk, own in zip(chunks, durations, strict=True)]
    sounds = _generate(vocoder, windows)
    return [_reply(chunk, own, *sound) for chunk, own, sound in zip(chunks, durations, sounds, strict=True)]


def _window(chunk: Chunk, durations: tuple[int, ...], history: int, context: int) -> _Window:
    end = chunk.certain_frames(durations)
    start = max(0, chunk.skip_frames - history)
    return _Window(
        frames=_frames(chunk.units, durations)[start : None if chunk.final else end + context],
        skip=chunk.skip_frames - start,
        num_new=end - chunk.skip_frames,
        open_left=start > 0 or not chunk.first,
        open_right=not chunk.final,
        phase=chunk.phase,
    )


def _durations(vocoder: Vocoder, chunks: list[Chunk]) -> list[tuple[int, ...]]:
    """Of every unit, in frames: those the chunk brings along, then those predicted now."""
    open_chunks = [chunk for chunk in chunks if len(chunk.durations) < len(chunk.units)]
    if not open_chunks:
        return [chunk.durations for chunk in chunks]
    batch, lengths = _pad([chunk.units for chunk in open_chunks], _device(vocoder))
    predicted = iter(vocoder.durations(batch, lengths).tolist())
    return [
        chunk.durations + tuple(next(predicted)[len(chunk.durations) : len(chunk.units)])
        if len(chunk.durations) < len(chunk.units)
        else chunk.durations
        for chunk in chunks
    ]


def _frames(units: Sequence[int], durations: Sequence[int]) -> list[int]:
    return [unit for unit, duration in zip(units, durations, strict=True) for _ in range(duration)]


def _generate(vocoder: Vocoder, windows: list[_Window]) -> list[tuple[np.ndarray, float]]:
    """Windows → the samples (S,) of their new frames, and the phase after them. A frame is a unit that lasts one."""
    sounds = [(np.zeros(0, dtype=np.float32), window.phase) for window in windows]
    busy = [i for i, window in enumerate(windows) if window.num_new]
    if not busy:
        return sounds
    width = max(len(windows[i].frames) for i in busy)
    width += -width % WIDTH_STEP
    filled = [_fill(windows[i], width) for i in busy]
    batch, lengths = _pad([window.frames for window in filled], _device(vocoder), width)
    samples, phases = _vocode(vocoder, batch, lengths, filled)
    hop = samples_per_frame(vocoder.config)
    for i, window, wave, phase in zip(busy, filled, samples.float().cpu().numpy(), phases, strict=True):
        sounds[i] = wave[window.skip * hop : (window.skip + window.num_new) * hop], phase
    return sounds


def _vocode(
    vocoder: Vocoder, batch: Tensor, lengths: Tensor, windows: Sequence[_Window]
) -> tuple[Tensor, Sequence[float]]:
    """(B, F) → samples (B, S), and the phase that each row's new frames end at."""
    if not isinstance(vocoder, SourceFilter):
        return vocoder(batch, torch.ones_like(batch), lengths), [0.0] * len(windows)
    skip = torch.tensor([window.skip for window in windows], device=batch.device)
    end = skip + torch.tensor([window.num_new for window in windows], device=batch.device)
    phase = torch.tensor([window.phase for window in windows], dtype=torch.float64, device=batch.device)
    samples, phases = vocoder.vocode(batch, lengths, skip, phase, end)
    return samples, phases.tolist()


def _fill(window: _Window, width: int) -> _Window:
    """Repeat a frame at an open edge, where the new frames do not hear it, until the window is `width` wide."""
    lack = width - len(window.frames)
    if window.open_right:
        return replace(window, frames=window.frames + window.frames[-1:] * lack)
    if window.open_left:
        return replace(window, frames=window.frames[:1] * lack + window.frames, skip=window.skip + lack)
    return window


def _reply(chunk: Chunk, durations: tuple[int, ...], wave: np.ndarray, phase: float) -> ChunkReply | ChunkError:
    if not np.isfinite(wave).all():
        return ChunkError(f"Chunk {chunk.number}: the vocoder's output is not finite.")
    return ChunkReply(chunk.number, to_pcm16(wave), durations, phase)


def _pad(rows: Sequence[Sequence[int]], device: torch.device, width: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of different lengths → (B, the longest or width) filled up with zeros, and (B,) lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    batch = torch.zeros(len(rows), max(width, int(lengths.max())), dtype=torch.long)
    for i, row in enumerate(rows):
        batch[i, : len(row)] = torch.tensor(row)
    return batch.to(device), lengths.to(device)


def _device(vocoder: Vocoder) -> torch.device:
    return next(vocoder.parameters()).device
