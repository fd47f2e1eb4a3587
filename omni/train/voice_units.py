"""What the voice is about to say → units: k-means over its own states, phone by phone. Knows no LLM and no sound.

    omni train voice --answers runs/mini/answers.jsonl --voice runs/mini/voice
    omni train voice --answers more.jsonl --voice runs/mini/voice-2 --units runs/mini/voice/units.safetensors

A unit is one of the sounds of a phone: how many a phone gets grows with how often it comes and how much it varies. The
states differ by the phone's neighbours, its stress and its place in the sentence, so a unit says more than a phone, and
nothing that the text does not: units of the recording itself (units.py) also hold its noise, which nobody can predict
from a text. Distances are those that the voice's decoder sees.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.cluster import MiniBatchKMeans
from tqdm import tqdm

from omni.train import keep
from omni.train.units import merge, texts_to_speak
from omni.train.voice_states import SAMPLES_PER_FRAME, NothingToSay, Said, VoiceStates, decoder_weights

logger = logging.getLogger(__name__)
LONGEST = 12.0  # seconds
SILENCES = ' .,!?;:—…"“”()'  # phones that are no sound share their units: a pause is a pause


def phone_of(letter: str) -> str:
    return " " if letter in SILENCES else letter


def metric(decoder: dict[str, torch.Tensor], width: int) -> np.ndarray:
    """(width, width) L: |(a - b) L|² is how far the decoder's first layer tells two states apart."""
    taps = decoder["conv.weight"][:, :width].double()
    gram = torch.einsum("oik,ojk->ij", taps, taps)
    return np.linalg.cholesky(gram.numpy() + 1e-6 * np.eye(width))


def learn(states: np.ndarray, phones: Sequence[str], num_units: int, seed: int) -> tuple:
    """(N, C) scaled states and their phones → centroids (K, C), and the phone of each. K is num_units, or fewer."""
    names = sorted(set(phones))
    labels = np.array([names.index(each) for each in phones])
    spread = [
        float(((states[labels == i] - states[labels == i].mean(0)) ** 2).sum(1).mean()) for i in range(len(names))
    ]
    counts = np.bincount(labels)
    shares = np.sqrt(counts * np.asarray(spread))
    found, owners = [], []
    for i, name in enumerate(names):
        own = states[labels == i]
        k = min(max(1, round(num_units * shares[i] / shares.sum())), len(np.unique(own, axis=0)))
        means = MiniBatchKMeans(k, random_state=seed, batch_size=4096, n_init=3).fit(own.astype(np.float64))
        found.append(means.cluster_centers_)
        owners += [name] * k
    return np.concatenate(found), owners


def nearest(states: np.ndarray, phones: Sequence[str], centroids: np.ndarray, owners: Sequence[str]) -> np.ndarray:
    """(N, C) → (N,): the nearest centroid among those of the state's own phone; of any where it has none."""
    owner = np.asarray(owners)
    found = np.zeros(len(states), np.int64)
    for name in set(phones):
        rows = np.flatnonzero(np.asarray(phones) == name)
        choice = np.flatnonzero(owner == name)
        choice = choice if len(choice) else np.arange(len(owner))
        distance = (centroids[choice] ** 2).sum(1) - 2 * states[rows] @ centroids[choice].T
        found[rows] = choice[distance.argmin(1)]
    return found


def write(folder: Path, said: Sequence[tuple[dict, Said]], codes: Sequence[np.ndarray]) -> None:
    """speech.jsonl, a line for each text; codes.npy and states.npy of every frame; melody.npy of half frames."""
    lines = []
    for row, each in said:
        ends, words = (None if x is None else np.round(x, 4).tolist() for x in (each.ends, each.word_ends))
        size = {"samples": int(each.frames.sum()) * SAMPLES_PER_FRAME, "samples_per_frame": SAMPLES_PER_FRAME}
        lines.append(
            json.dumps(row | size | {"phones": each.phones, "ends": ends, "word_ends": words}, ensure_ascii=False)
        )
    keep.text(folder / "speech.jsonl", "\n".join(lines) + "\n")
    frames = [code.repeat(each.frames) for code, (_, each) in zip(codes, said, strict=True)]
    np.save(folder / "codes.npy", np.concatenate(frames).astype(np.int16))
    np.save(
        folder / "melody.npy", np.stack([np.concatenate([getattr(s, x) for _, s in said]) for x in ("f0", "energy")])
    )
    np.save(
        folder / "states.npy", np.concatenate([s.states.repeat(s.frames, axis=0) for _, s in said]).astype(np.float16)
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--answers", type=Path, required=True, help="JSON lines with a response (or text) to speak")
    parser.add_argument("--voice", type=Path, required=True, help="folder for what is said, and the units")
    parser.add_argument("--limit", type=int, help="speak only so many answers, beside the sentences")
    parser.add_argument("--sentences", type=int, default=3600, help="sentences to repeat, beside all answers")
    parser.add_argument("--num-units", type=int, default=500)
    parser.add_argument("--units", type=Path, help="units.safetensors of another folder, instead of new ones")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> int:
    voice = VoiceStates()
    said = []
    for row in tqdm(texts_to_speak(args), desc="speaking", disable=None):
        try:
            each = voice(row["text"])
        except NothingToSay:  # an answer of the LLM's own may be empty
            continue
        if 0.5 <= len(each.f0) / 2 * SAMPLES_PER_FRAME / 16_000 <= LONGEST:
            said.append((row, each))
    states = np.concatenate([each.states for _, each in said])
    scale = metric(decoder_weights(), states.shape[1])
    phones = [phone_of(letter) for _, each in said for letter in each.phones]
    if args.units:
        known = load_file(args.units)
        centroids, owners = known["centroids"].numpy() @ scale, [chr(i) for i in known["phones"].tolist()]
    else:
        centroids, owners = learn(states @ scale, phones, args.num_units, args.seed)
    codes = nearest(states @ scale, phones, centroids, owners)
    args.voice.mkdir(parents=True, exist_ok=True)
    real = torch.from_numpy(np.linalg.solve(scale.T, centroids.T).T.copy()).float()
    keep.tensors(
        args.voice / "units.safetensors", {"centroids": real, "phones": torch.tensor([ord(x) for x in owners])}
    )
    pieces = np.split(codes, np.cumsum([len(each.states) for _, each in said])[:-1])
    write(args.voice, said, pieces)
    num_merged = sum(len(merge(piece.tolist())[0]) for piece in pieces)
    seconds = sum(each.frames.sum() for _, each in said) * SAMPLES_PER_FRAME / 16_000
    logger.info(
        "%d texts, %.2f h, %d units, %.1f merged units a second",
        len(said),
        seconds / 3600,
        len(owners),
        num_merged / seconds,
    )
    return 0
