"""Units and recordings → the vocoder that speaks them, trained against discriminators as HiFi-GAN is.

    omni train vocoder-gan --voice runs/mini/voice --output runs/mini/vocoder-gan --steps 400000 --shape published
    omni train vocoder-gan --voice runs/mini/voice --output runs/mini/vocoder-gan --start runs/mini/export/vocoder

A voice with a free pitch is no function of its units: plain regression (vocoder.py) blurs it, and discriminators say
what a blur is. Weights and schedule are the published ones: least-squares losses, twice the feature loss, 45 times the
L1 distance of log-mels, AdamW at 2e-4 with betas 0.8 and 0.99, falling by a thousandth every epoch, segments of 28
frames (0.56 s), weight norm (Kong et al., arXiv 2010.05646; Polyak et al., arXiv 2104.00355, for units).

A step's data follow from the seed and its number alone, and every checkpoint holds all that training needs: a run goes
on from its last one, or from the one that --from-step names, and ends where an undisturbed one does. Beside
metrics.csv lie samples/STEP/N.wav: held-out recordings as the vocoder would speak their units at that step.
"""

import argparse
import functools
import json
import logging
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, pad
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from tqdm import tqdm
from transformers.audio_utils import mel_filter_bank

from omni.audio import wav
from omni.train import keep, vocoder
from omni.train.answers import SAMPLES_PER_FRAME, Recordings
from omni.train.discriminators import Discriminators, adversarial_loss, discriminator_loss, feature_loss
from omni.train.metrics import Metrics
from omni.train.units import Units, merge
from omni.vocoder import checkpoint
from omni.vocoder.checkpoint import VocoderCheckpointError
from omni.vocoder.code_hifigan import CodeHiFiGAN

logger = logging.getLogger(__name__)
PUBLISHED = vocoder.CONFIG | {  # of fairseq's mhubert_vp_en_es_fr_it3_400k_layer11_km1000_lj
    "upsample_rates": [5, 4, 4, 2, 2],
    "upsample_kernel_sizes": [11, 8, 8, 4, 4],
    "upsample_initial_channel": 512,
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5]] * 3,
    "embedding_dim": 128,
    "model_in_dim": 128,
    "dur_predictor_params": {
        "encoder_embed_dim": 128,
        "var_pred_hidden_dim": 128,
        "var_pred_kernel_size": 3,
        "var_pred_dropout": 0.5,
    },
}
SHAPES = {"mini": vocoder.CONFIG, "published": PUBLISHED}
FRAMES = 28  # of a segment
WINDOW, HOP, NUM_MELS = 1024, 256, 80  # of the mel loss, in samples
MEL_WEIGHT, FEATURE_WEIGHT = 45.0, 2.0
BETAS = (0.8, 0.99)


class TrainingError(ValueError):
    """What was asked for cannot be trained from what is there."""


# The losses


@functools.cache
def _filters() -> Tensor:
    bank = mel_filter_bank(WINDOW // 2 + 1, NUM_MELS, 0.0, wav.SAMPLE_RATE / 2, wav.SAMPLE_RATE, "slaney", "slaney")
    return torch.from_numpy(bank.astype(np.float32))


def log_mel(sound: Tensor) -> Tensor:
    """(B, S) → (B, S / 256, 80), natural logarithms, as HiFi-GAN's mel loss takes them."""
    padded = pad(sound[:, None], ((WINDOW - HOP) // 2,) * 2, "reflect")[:, 0]
    window = torch.hann_window(WINDOW, device=sound.device)
    spectrum = torch.stft(padded, WINDOW, HOP, window=window, center=False, return_complex=True)
    magnitude = (torch.view_as_real(spectrum).pow(2).sum(-1) + 1e-9).sqrt()
    return (magnitude.transpose(1, 2) @ _filters().to(sound.device)).clamp(min=1e-5).log()


def crops(
    recordings: Recordings, codes: Sequence[np.ndarray], size: int, draw: random.Random, device: torch.device
) -> tuple[Tensor, Tensor]:
    """`size` random pieces of FRAMES: frame-wise units (B, F) and samples (B, S)."""
    rows, sounds = vocoder.segments(recordings, codes, size, draw)
    first = draw.randrange(rows.shape[1] - FRAMES + 1)
    rows = rows[:, first : first + FRAMES]
    sounds = sounds[:, first * SAMPLES_PER_FRAME : (first + FRAMES) * SAMPLES_PER_FRAME]
    return rows.to(device), sounds.to(device)


# The generator


def normed(model: CodeHiFiGAN) -> CodeHiFiGAN:
    """Every convolution of the generator split into a direction and a length, in place. Durations stay as they are."""
    for part in (model.conv_pre, model.ups, model.resblocks, model.conv_post):
        for module in part.modules():
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                weight_norm(module)
    return model


def plain(model: CodeHiFiGAN) -> CodeHiFiGAN:
    """A copy on the CPU with plain weights, as it is served."""
    weights = {name: x for name, x in model.state_dict().items() if ".parametrizations." not in name}
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            weights[f"{name}.weight"] = module.weight.detach()
    copied = CodeHiFiGAN(model.config)
    copied.load_state_dict(weights)
    return copied.eval()


def new_generator(config: dict, units: Units, start: Path | None) -> CodeHiFiGAN:
    """With torch's own start, the embeddings from the units' centroids; or as `start` has it."""
    model = CodeHiFiGAN(config)
    if start is not None:
        model.load_state_dict(checkpoint.load(start).state_dict())
    else:
        centroids = units.centroids / units.centroids.std()
        model.dict.weight.data.mul_(0.1)
        width = min(centroids.shape[1], model.dict.embedding_dim)
        model.dict.weight.data[:, :width] += centroids[:, :width]
    return normed(model)


# The training


class Training:
    """Generator, discriminators and their optimisers: what a checkpoint holds."""

    def __init__(self, model: CodeHiFiGAN, judges: Discriminators, rate: float, device: torch.device) -> None:
        self.model, self.judges, self.rate, self.device = model.to(device), judges.to(device), rate, device
        self.speaks = torch.optim.AdamW(model.parameters(), lr=rate, betas=BETAS)
        self.judging = torch.optim.AdamW(judges.parameters(), lr=rate, betas=BETAS)

    def step(self, rows: Tensor, sounds: Tensor, merged: Sequence[tuple[list[int], list[int]]]) -> dict[str, float]:
        """One update of the discriminators, then one of the generator; the losses, each as it is weighed."""
        made = self.model(rows, torch.ones_like(rows))
        judged = discriminator_loss(self.judges(sounds), self.judges(made.detach()))
        self.judging.zero_grad(set_to_none=True)
        judged.backward()
        self.judging.step()

        with self.device:
            durations = vocoder.duration_loss(self.model, merged)
        self.judges.requires_grad_(False)
        with torch.no_grad():
            wanted = self.judges(sounds)
        seen = self.judges(made)
        parts = {
            "adversarial": adversarial_loss(seen),
            "features": FEATURE_WEIGHT * feature_loss(wanted, seen),
            "mel": MEL_WEIGHT * l1_loss(log_mel(made), log_mel(sounds)),
            "durations": durations,
        }
        self.speaks.zero_grad(set_to_none=True)
        torch.stack(list(parts.values())).sum().backward()
        self.judges.requires_grad_(True)
        self.speaks.step()
        return {name: float(loss.detach()) for name, loss in {"discriminators": judged, **parts}.items()}

    def set_rate(self, decay: float, epoch: int) -> float:
        now = self.rate * decay**epoch
        for group in [*self.speaks.param_groups, *self.judging.param_groups]:
            group["lr"] = now
        return now

    def state(self, step: int) -> dict:
        parts = ("model", "judges", "speaks", "judging")
        return {name: getattr(self, name).state_dict() for name in parts} | {"step": step}

    def load(self, path: Path) -> int:
        saved = torch.load(path, map_location=self.device, weights_only=True)
        for name in ("model", "judges", "speaks", "judging"):
            getattr(self, name).load_state_dict(saved[name])
        return saved["step"]


def kept(output: Path, from_step: int | None) -> Path | None:
    """The checkpoint to go on from: the newest, or the one that was named; None for a new run."""
    found = {int(path.stem): path for path in (output / "checkpoints").glob("*.pt")}
    if from_step is None:
        return found[max(found)] if found else None
    if from_step not in found:
        raise TrainingError(f"{output} holds no checkpoint of step {from_step}; it has {sorted(found) or 'none'}.")
    return found[from_step]


def save(training: Training, step: int, config: dict, output: Path, keep_last: int) -> None:
    """checkpoints/STEP.pt, the last few up to this; and config.json and g_00000000.pt, which serve."""
    keep.state(output / "checkpoints" / f"{step:08}.pt", training.state(step))
    checkpoint.save(plain(training.model), config, output, torch.float16)
    found = {int(path.stem): path for path in (output / "checkpoints").glob("*.pt")}
    current = sorted(each for each in found if each <= step)[-keep_last:]
    for each in found.keys() - set(current):  # those after this step are of a run that was given up (--from-step)
        found[each].unlink()


@torch.inference_mode()
def listen(training: Training, recordings: Recordings, heldout: dict[int, np.ndarray], folder: Path) -> float:
    """Speak held-out recordings' units into WAV files; returns the mel distance at the recordings' own durations."""
    model = plain(training.model)
    folder.mkdir(parents=True, exist_ok=True)
    far = []
    for number, codes in heldout.items():
        units, durations = merge(codes.tolist())
        wav.write(folder / f"{number}.wav", model.speak(units).numpy())
        made = model(torch.tensor([units]), torch.tensor([durations]))
        far.append(float(l1_loss(log_mel(made), log_mel(torch.from_numpy(recordings.samples(number))[None]))))
    return float(np.mean(far))


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not (args.voice / "speech.npy").exists():
        raise TrainingError(f"{args.voice} holds no recordings (speech.npy): make them with omni train units.")
    recordings, units = Recordings(args.voice), Units.load(args.voice / "units.safetensors")
    codes = recordings.split_frames(np.load(args.voice / "codes.npy").astype(np.int64))
    if args.heldout >= len(codes):
        raise TrainingError(f"{args.voice} has {len(codes)} recordings; {args.heldout} held out leave none to learn.")
    last = len(codes) - args.heldout
    heldout = {number: codes[number] for number in range(last, min(last + args.listen, len(codes)))}
    codes = codes[:last]
    merged = [merge(each.tolist()) for each in codes]
    config = json.loads(args.config.read_text()) if args.config else SHAPES[args.shape]
    if args.start:
        config = checkpoint.read_config(args.start)
        if "generator" in config:
            raise TrainingError(
                f"{args.start} holds a {config['generator']} vocoder; only CodeHiFiGAN is trained here."
            )
    config = config | {"num_embeddings": len(units.centroids)}
    training = Training(new_generator(config, units, args.start), Discriminators(args.narrow), args.rate, device)
    begun = kept(args.output, args.from_step)
    first = training.load(begun) if begun else 0
    metrics = Metrics(args.output / "metrics.csv", first)
    for number in heldout:  # what they should sound like
        keep.whole(
            args.output / "samples" / "recorded" / f"{number}.wav",
            functools.partial(wav.write, samples=recordings.samples(number)),
        )
    epoch = max(1, len(codes) // args.batch)  # in steps
    for step in tqdm(range(first, args.steps), initial=first, total=args.steps, desc="vocoder", disable=None):
        draw = random.Random(f"{args.seed} step {step}")
        rows, sounds = crops(recordings, codes, args.batch, draw, device)
        some = draw.sample(merged, min(args.batch, len(merged)))
        rate = training.set_rate(args.decay, step // epoch)
        losses = training.step(rows, sounds, some)
        done = step + 1
        if done % args.log_every == 0 or done == args.steps:
            metrics.row(done, losses | {"rate": rate})
        if heldout and (done % args.listen_every == 0 or done == args.steps):
            far = listen(training, recordings, heldout, args.output / "samples" / f"{done:08}")
            metrics.row(done, {"heldout_mel": far})
        if done % args.save_every == 0 or done == args.steps:
            save(training, done, config, args.output, args.keep)


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--voice", type=Path, required=True, help="folder that `omni train units` wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder for the vocoder, checkpoints and samples")
    parser.add_argument("--steps", type=int, default=400_000, help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="segments of 0.56 s (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate at the start (default: %(default)s)")
    parser.add_argument("--decay", type=float, default=0.999, help="of the rate, an epoch (default: %(default)s)")
    parser.add_argument("--shape", choices=SHAPES, default="mini", help="of the generator (default: %(default)s)")
    parser.add_argument("--config", type=Path, help="vocoder config.json, instead of a shape")
    parser.add_argument("--start", type=Path, help="vocoder folder to start from, as `omni train vocoder` writes it")
    parser.add_argument("--narrow", type=int, default=1, help="divides the discriminators' widths (default: published)")
    parser.add_argument("--heldout", type=int, default=100, help="last recordings that are not trained on")
    parser.add_argument("--listen", type=int, default=4, metavar="N", help="held-out recordings to speak each time")
    parser.add_argument("--listen-every", type=int, default=5000, metavar="STEPS", help="(default: %(default)s)")
    parser.add_argument("--save-every", type=int, default=5000, metavar="STEPS", help="(default: %(default)s)")
    parser.add_argument("--keep", type=int, default=3, metavar="N", help="checkpoints to keep (default: %(default)s)")
    parser.add_argument("--from-step", type=int, metavar="STEP", help="go on from this checkpoint (default: the last)")
    parser.add_argument("--log-every", type=int, default=20, metavar="STEPS", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> int:
    try:
        train(args)
    except (TrainingError, VocoderCheckpointError) as exc:
        print(f"omni train vocoder-gan: {exc}", file=sys.stderr)
        return 2
    return 0
