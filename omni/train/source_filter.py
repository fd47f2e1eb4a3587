"""What the voice is about to say, and its units → the vocoder that speaks them by source and filter.

    omni train source-filter --voice runs/mini/voice --output runs/mini/export/vocoder --minutes 20

The voice's own decoder is the teacher: from the true states, pitch and energy it makes spectra, and the vocoder, which
has only units and a narrower view of what comes next, learns to make the same. It starts from the teacher's weights.
Beside it learn: pitch and energy of every half frame, from units; and how long a unit lasts, log(frames + 1).
"""

import argparse
import itertools
import json
import logging
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from omni.train.metrics import Metrics
from omni.train.units import merge
from omni.train.vocoder import duration_loss, resume, save, set_rate
from omni.train.voice_states import BLOCKS, SAMPLES_PER_FRAME, decoder_weights
from omni.vocoder import checkpoint
from omni.vocoder.hifigan import Padding
from omni.vocoder.source_filter import (
    ENERGY_SCALE,
    F0_SCALE,
    HALVES,
    LOG_SCALE,
    LOUDEST,
    Block,
    SourceFilter,
    Stack,
)
from omni.vocoder.streaming import SOURCE_FILTER

logger = logging.getLogger(__name__)
CONFIG: dict[str, Any] = {
    "generator": SOURCE_FILTER,
    "embedding_dim": 128,
    "code_hop_size": SAMPLES_PER_FRAME,
    "sampling_rate": 16_000,
    "dur_predictor_params": {"encoder_embed_dim": 128, "var_pred_hidden_dim": 192, "var_pred_kernel_size": 3},
    # (earlier, later) frames that each layer sees: what comes later has to be waited for
    "prosody": {"width": 192, "hidden": 384, "reach": [[3, 1], [6, 1], [6, 0], [6, 0]]},
    "decoder": {
        "width": 256,
        "hidden": 768,
        "reach": [[3, 1], [3, 2], [3, 1], [3, 1], [3, 1], [3, 0], [3, 0], [3, 0], [3, 0]],
    },
}
TEACHER_REACH = [[3, 3]] * (BLOCKS + 1)
SEGMENT_FRAMES, EDGE_FRAMES = 56, 12  # of 25 ms; the first of a segment lack context and are not judged
QUIET = 1e-3  # amplitude below which nothing is heard


class Voice:
    """A folder that `omni train voice` wrote: per text the unit of every frame, states, pitch and energy."""

    def __init__(self, folder: Path, heldout: int) -> None:
        with (folder / "speech.jsonl").open() as file:
            rows = [json.loads(line) for line in file]
        frames = [row["samples"] // SAMPLES_PER_FRAME for row in rows]
        starts = np.cumsum([0, *frames])
        self.codes = np.load(folder / "codes.npy")
        self.states = np.load(folder / "states.npy", mmap_mode="r")
        self.melody = np.load(folder / "melody.npy")
        self.pieces = list(itertools.pairwise(starts))[: -heldout or None]

    def merged(self) -> list[tuple[list[int], list[int]]]:
        return [merge(self.codes[a:b].tolist()) for a, b in self.pieces]

    def segments(self, size: int, draw: random.Random) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Units (B, F), states (B, F, C), pitch in Hz and energy (B, 2F) of `size` random pieces."""
        long = [(a, b) for a, b in self.pieces if b - a >= SEGMENT_FRAMES]
        chosen = draw.choices(long, weights=[b - a - SEGMENT_FRAMES + 1 for a, b in long], k=size)
        starts = [draw.randint(a, b - SEGMENT_FRAMES) for a, b in chosen]
        units = np.stack([self.codes[s : s + SEGMENT_FRAMES] for s in starts]).astype(np.int64)
        states = np.stack([self.states[s : s + SEGMENT_FRAMES] for s in starts]).astype(np.float32)
        melody = np.stack([self.melody[:, 2 * s : 2 * (s + SEGMENT_FRAMES)] for s in starts], 1)
        f0, energy = (torch.from_numpy(x.copy()) for x in melody)
        return torch.from_numpy(units), torch.from_numpy(states), f0, energy


def new_model(num_units: int, centroids: Tensor, teacher: dict[str, Tensor]) -> SourceFilter:
    """Units start as their centroids, the decoder as the teacher's, without the taps that would look further ahead."""
    model = SourceFilter(CONFIG | {"num_embeddings": num_units})
    model.dict.weight.data.copy_(centroids)
    weights = dict(teacher)
    for name, (before, after) in zip(
        ["conv.weight", *(f"blocks.{i}.dw.weight" for i in range(BLOCKS))], CONFIG["decoder"]["reach"], strict=True
    ):
        middle = weights[name].shape[-1] // 2
        weights[name] = weights[name][..., middle - before : middle + after + 1]
    model.decoder.load_state_dict(weights)
    for block in model.prosody.blocks:
        assert isinstance(block, Block)
        nn.init.constant_(block.gamma, 0.1)
    return model


def go_on_from(model: SourceFilter, directory: Path) -> None:
    """All that another vocoder has learnt but its units."""
    known = checkpoint.load(directory).state_dict()
    model.load_state_dict({name: x for name, x in known.items() if name != "dict.weight"}, strict=False)


def spectrum(model: SourceFilter, spectra: Tensor, voice: Tensor) -> Tensor:
    """What `sound` would transform back, complex (B, 2F, bins)."""
    gain, turn, level, phase = spectra.transpose(1, 2).split(model.bins, dim=-1)
    made = voice * torch.polar(gain.clamp(max=LOUDEST).exp(), torch.pi * torch.tanh(turn))
    return made + torch.polar(level.clamp(max=LOUDEST).exp(), phase)


def distance(made: Tensor, wanted: Tensor) -> Tensor:
    """How far complex spectra are apart: in logarithms of magnitude, and relative to the loudness, phase included."""
    a, b = made.abs() + QUIET, wanted.abs() + QUIET
    return l1_loss(a.log(), b.log()) + (made - wanted).abs().mean() / wanted.abs().mean()


def losses(model: SourceFilter, teacher: Stack, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(spectra, melody)"""
    units, states, f0, energy = batch
    inside = Padding(None, units.shape[1])
    told = torch.stack((torch.log(1 + f0.clamp(min=0)) / LOG_SCALE, energy / ENERGY_SCALE), 1)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            wanted = teacher(
                torch.cat((states.transpose(1, 2).repeat_interleave(HALVES, -1), told), 1), inside.upsampled(HALVES)
            ).float()
        embedded = model.dict(units).transpose(1, 2)
        made = model.spectra(embedded, f0, energy, inside).float()
        said_f0, said_energy = model.melody(embedded.detach(), inside)
    melody = l1_loss(said_f0.float() / F0_SCALE, f0 / F0_SCALE) + l1_loss(
        said_energy.float() / ENERGY_SCALE, energy / ENERGY_SCALE
    )
    with torch.no_grad():
        size = 4 * model.hop
        pulses = model.pulses(f0, model.cycles(f0)[:, 1:])
        pieces = nn.functional.pad(pulses, (size // 2, size // 2)).unfold(1, size, model.hop)[:, : made.shape[-1]]
        voice = torch.fft.rfft(pieces * (model.window / (size / 4)))
    inner = slice(2 * EDGE_FRAMES, -2 * 4)
    far = distance(spectrum(model, made, voice)[:, inner], spectrum(model, wanted, voice)[:, inner])
    return far, melody


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--voice", type=Path, required=True, help="folder that `omni train voice` wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder for config.json and g_00000000.pt")
    parser.add_argument("--start", type=Path, help="a vocoder with other units to go on from")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--steps", type=float, default=math.inf, help="stop after so many, if the minutes last longer")
    parser.add_argument("--save-every", type=float, default=120.0, metavar="SECONDS", help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=12, help="segments of 1.4 s")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate, falling to zero over the minutes")
    parser.add_argument("--heldout", type=int, default=100, help="last texts that are not trained on")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> int:
    torch.manual_seed(args.seed)
    voice = Voice(args.voice, args.heldout)
    centroids = load_file(args.voice / "units.safetensors")["centroids"]
    weights = decoder_weights()
    model = new_model(len(centroids), centroids, weights)
    if args.start:
        go_on_from(model, args.start)
    teacher = Stack(130, 4 * model.bins, 256, 768, TEACHER_REACH).eval().requires_grad_(False)
    teacher.load_state_dict(weights)
    merged = voice.merged()
    pace = sum(sum(frames) for _, frames in merged) / sum(len(units) for units, _ in merged)
    model.config = {**model.config, "frames_per_unit": round(pace, 2)}  # chunks are planned by it
    groups: list[dict] = [
        {"params": [*model.dict.parameters(), *model.decoder.parameters()], "part": 0.5},
        {"params": [*model.prosody.parameters(), *model.dur_predictor.parameters()], "part": 4.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=args.rate, betas=(0.8, 0.99), weight_decay=0.0)
    done, step = resume(model, optimiser, args.output)
    metrics = Metrics(args.output / "metrics.csv", step)
    begun, saved_at = time.monotonic() - done, time.monotonic()
    while True:
        seconds = time.monotonic() - begun
        progress = max(seconds / (args.minutes * 60), step / args.steps)
        if progress >= 1.0:
            break
        set_rate(optimiser, args.rate, progress if math.isinf(args.steps) else step / args.steps)
        for group in optimiser.param_groups:
            group["lr"] *= group["part"]
        draw = random.Random(f"{args.seed} step {step}")  # a step's data follow from its number alone
        far, melody = losses(model, teacher, voice.segments(args.batch, draw))
        durations = duration_loss(model, draw.sample(merged, min(2 * args.batch, len(merged))))
        optimiser.zero_grad()
        (far + melody + durations).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        step += 1
        if step % 20 == 0:
            found = {"spectra": far.item(), "melody": melody.item(), "durations": durations.item()}
            logger.info("%.1f min, step %d: %s", seconds / 60, step, " ".join(f"{k} {x:.3f}" for k, x in found.items()))
            metrics.row(step, found)
        if time.monotonic() - saved_at > args.save_every:
            save(model, optimiser, time.monotonic() - begun, step, args.output)
            saved_at = time.monotonic()
    save(model, optimiser, time.monotonic() - begun, step, args.output)
    return 0
