"""Units and recordings → the vocoder that speaks them, durations included.

    omni train vocoder --voice runs/mini/voice --out runs/mini/export/vocoder --minutes 25

A voice on one note (train/answers.py) makes the waveform a function of the units, so plain regression learns it: the
distance of spectra at several resolutions, and of the waveforms. The duration predictor learns log(frames + 1) of the
merged units at the same time. No discriminator yet.
"""

import argparse
import json
import logging
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss, pad
from torch.nn.utils.rnn import pad_sequence

from omni.train import keep
from omni.train.answers import SAMPLES_PER_FRAME, Recordings
from omni.train.metrics import Metrics
from omni.train.units import Units, merge
from omni.vocoder import checkpoint
from omni.vocoder.code_hifigan import CodeHiFiGAN
from omni.vocoder.durations import UnitVocoder
from omni.vocoder.hifigan import Padding

logger = logging.getLogger(__name__)

CONFIG = {  # fairseq's keys; a thirtieth of the published generator's work, and a third of its look-ahead
    "resblock": "1",
    "upsample_rates": [5, 4, 4, 4],
    "upsample_kernel_sizes": [11, 8, 8, 8],
    "upsample_initial_channel": 256,
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3, 5]],
    "embedding_dim": 64,
    "model_in_dim": 64,
    "code_hop_size": SAMPLES_PER_FRAME,
    "sampling_rate": 16_000,
    "f0": False,
    "dur_prediction_weight": 1.0,
    "dur_predictor_params": {
        "encoder_embed_dim": 64,
        "var_pred_hidden_dim": 128,
        "var_pred_kernel_size": 3,
        "var_pred_dropout": 0.5,
    },
}
RESOLUTIONS = ((2048, 320), (1024, 160), (512, 80), (256, 40))  # window and hop in samples; 2048 hears a 50 Hz buzz
WAVE_WEIGHT = 1.0
SEGMENT_FRAMES, EDGE_FRAMES = 64, 6  # the edges of a segment lack context and are not judged


def spectral_distance(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean over resolutions of how far magnitudes (B, S) are apart: relative, and in logarithms."""
    total = made.new_zeros(())
    for size, hop in RESOLUTIONS:
        window = torch.hann_window(size, device=made.device)
        a, b = (
            torch.view_as_real(torch.stft(x, size, hop, window=window, return_complex=True)).pow(2).sum(-1) + 1e-7
            for x in (made, wanted)
        )
        magnitude = (a.sqrt() - b.sqrt()).norm() / b.sqrt().norm()
        total = total + magnitude + 0.5 * l1_loss(a.log(), b.log())
    return total / len(RESOLUTIONS)


def initialise(model: CodeHiFiGAN, units: Units) -> None:
    """Similar units start with similar embeddings: their centroids, scaled to the size of the others' start."""
    centroids = units.centroids / units.centroids.std()
    model.dict.weight.data.mul_(0.1)
    model.dict.weight.data[:, : centroids.shape[1]] += centroids[:, : model.dict.embedding_dim]
    for name, weight in model.named_parameters():
        if weight.dim() == 3 and "dur_predictor" not in name:
            nn.init.kaiming_normal_(weight, a=0.1, mode="fan_out" if name.startswith("ups") else "fan_in")
    for name, weight in model.named_parameters():
        if ".convs2." in name:  # each pair starts small beside what it is added to
            weight.data.mul_(0.2)
    model.conv_post.weight.data.mul_(0.1)


def segments(
    recordings: Recordings, codes: Sequence[np.ndarray], size: int, draw: random.Random
) -> tuple[Tensor, Tensor]:
    """`size` random pieces: frame-wise units (B, F) and samples (B, S). Long recordings come more often."""
    lengths = [max(0, len(each) - SEGMENT_FRAMES) + 1 for each in codes]
    rows, sounds = [], []
    for number in draw.choices(range(len(codes)), weights=lengths, k=size):
        start = draw.randrange(lengths[number])
        row = torch.from_numpy(codes[number][start : start + SEGMENT_FRAMES])
        first = start * SAMPLES_PER_FRAME
        sound = torch.from_numpy(recordings.samples(number)[first : first + len(row) * SAMPLES_PER_FRAME])
        missing = SEGMENT_FRAMES - len(row)  # short recordings go on with their last unit, in silence
        rows.append(torch.cat((row, row[-1:].expand(missing))))
        sounds.append(pad(sound, (0, missing * SAMPLES_PER_FRAME)))
    return torch.stack(rows), torch.stack(sounds)


def duration_loss(model: UnitVocoder, merged: Sequence[tuple[list[int], list[int]]]) -> Tensor:
    """Mean squared error of log(frames + 1) over recordings' merged units."""
    units = pad_sequence([torch.tensor(row) for row, _ in merged], batch_first=True)
    wanted = pad_sequence([torch.tensor(durations) for _, durations in merged], batch_first=True)
    lengths = torch.tensor([len(row) for row, _ in merged])
    inside = Padding(lengths, units.shape[1])
    found = model.dur_predictor(model.dict(units).detach(), inside)
    return mse_loss(found[wanted > 0], torch.log(wanted[wanted > 0] + 1.0))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--voice", type=Path, required=True, help="folder that `omni train units` wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder for config.json and g_00000000.pt")
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--steps", type=float, default=math.inf, help="stop after so many, if the minutes last longer")
    parser.add_argument("--save-every", type=float, default=120.0, metavar="SECONDS", help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="segments of 1.28 s")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate, falling to zero over the minutes")
    parser.add_argument("--heldout", type=int, default=100, help="last recordings that are not trained on")
    parser.add_argument("--config", type=Path, help="vocoder config.json; ours unless given")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> int:
    torch.manual_seed(args.seed)
    recordings, units = Recordings(args.voice), Units.load(args.voice / "units.safetensors")
    codes = recordings.split_frames(np.load(args.voice / "codes.npy").astype(np.int64))[: -args.heldout or None]
    merged = [merge(each.tolist()) for each in codes]
    config = json.loads(args.config.read_text()) if args.config else CONFIG
    config = config | {"num_embeddings": len(units.centroids)}
    model = CodeHiFiGAN(config)
    initialise(model, units)
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.rate, betas=(0.8, 0.99), weight_decay=0.0)
    args.output.mkdir(parents=True, exist_ok=True)
    done, step = resume(model, optimiser, args.output)
    metrics = Metrics(args.output / "metrics.csv", step)
    begun = time.monotonic() - done
    saved_at = time.monotonic()
    while True:
        seconds = time.monotonic() - begun
        progress = max(seconds / (args.minutes * 60), step / args.steps)
        if progress >= 1.0:
            break
        set_rate(optimiser, args.rate, progress if math.isinf(args.steps) else step / args.steps)
        draw = random.Random(f"{args.seed} step {step}")  # a step's data follow from its number alone
        rows, sounds = segments(recordings, codes, args.batch, draw)
        with torch.autocast("cpu", torch.bfloat16):
            made = model(rows, torch.ones_like(rows))
        inner = slice(EDGE_FRAMES * SAMPLES_PER_FRAME, -EDGE_FRAMES * SAMPLES_PER_FRAME)
        spectra = spectral_distance(made[:, inner], sounds[:, inner])
        wave = l1_loss(made[:, inner], sounds[:, inner]) / sounds[:, inner].abs().mean()
        durations = duration_loss(model, draw.sample(merged, min(2 * args.batch, len(merged))))
        optimiser.zero_grad()
        (spectra + WAVE_WEIGHT * wave + durations).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        step += 1
        if step % 20 == 0:
            losses = " ".join(f"{x.item():.3f}" for x in (spectra, wave, durations))
            logger.info("%.1f min, step %d: spectra, wave, durations %s", seconds / 60, step, losses)
            found = {"spectra": spectra.item(), "wave": wave.item(), "durations": durations.item()}
            metrics.row(step, found | {"rate": optimiser.param_groups[0]["lr"]})
        if time.monotonic() - saved_at > args.save_every:
            save(model, optimiser, time.monotonic() - begun, step, args.output)
            saved_at = time.monotonic()
    save(model, optimiser, time.monotonic() - begun, step, args.output)
    return 0


def set_rate(optimiser: torch.optim.Optimizer, rate: float, progress: float) -> None:
    """Up within the first hundredth, then down a half cosine to zero."""
    now = rate * min(1.0, 0.05 + progress * 100) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    for group in optimiser.param_groups:
        group["lr"] = now


def resume(model: UnitVocoder, optimiser: torch.optim.Optimizer, output: Path) -> tuple[float, int]:
    """Seconds and steps of training that a killed run had done."""
    state = output / "training.pt"
    if not state.exists():
        return 0.0, 0
    saved = torch.load(state, weights_only=True)
    model.load_state_dict(saved["model"])
    optimiser.load_state_dict(saved["optimiser"])
    return saved["seconds"], saved["steps"]


def save(model: UnitVocoder, optimiser: torch.optim.Optimizer, seconds: float, steps: int, output: Path) -> None:
    """What serves, in the published layout and half precision, and what a later run goes on from."""
    checkpoint.save(model, dict(model.config), output, torch.float16)
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "seconds": seconds, "steps": steps}
    keep.state(output / "training.pt", state)
