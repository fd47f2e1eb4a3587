"""The held-out questions: new phrasings, spoken by voices that no training question is asked by.

    omni train heldout --output omni/train/data      # writes heldout.jsonl and heldout/*.flac, which ship

A line: id, audio (relative to the file), instruction, kind ("chitchat" or "factual"), accept (responses that fit),
fact (what a fitting answer names, or null), voice, split ("development": looked at while training; "test": not).
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from omni.audio.wav import SAMPLE_RATE
from omni.train import voices
from omni.train.instructions import Example, examples

logger = logging.getLogger(__name__)
DEVELOPMENT = {"chitchat": 60, "factual": 40}  # the first ones of a kind; the others are for the test


def choose(heldout: Sequence[Example], kind: str, count: int, seed: int) -> list[Example]:
    """`count` questions of a kind, spread evenly over its intents or relations, then at random."""
    draw = np.random.default_rng([seed, *kind.encode()])
    waiting: dict[str, list[Example]] = {}
    for example in heldout:
        if example.kind == kind:
            waiting.setdefault(example.group.split("/")[0], []).append(example)
    queues = [[group[i] for i in draw.permutation(len(group))] for group in waiting.values()]
    queues = [queues[i] for i in draw.permutation(len(queues))]
    chosen: list[Example] = []
    while len(chosen) < count and any(queues):
        chosen += [queue.pop() for queue in queues if queue][: count - len(chosen)]
    return chosen


def split(heldout: Sequence[Example], counts: dict[str, int], seed: int) -> list[tuple[str, Example]]:
    """`counts` questions of each kind with what they are for, those for development first."""
    chosen = {kind: choose(heldout, kind, count, seed) for kind, count in counts.items()}
    first = [("development", each) for kind, some in chosen.items() for each in some[: DEVELOPMENT[kind]]]
    return first + [("test", each) for kind, some in chosen.items() for each in some[DEVELOPMENT[kind] :]]


def speak(chosen: Sequence[tuple[str, Example]], folder: Path, seed: int) -> list[dict]:
    """Write the questions as FLAC files into folder/heldout and return their rows; each speaker asks every fourth."""
    (folder / "heldout").mkdir(parents=True, exist_ok=True)
    speakers = {name: voices.make(f"kokoro/{name}") for name in voices.HELDOUT}
    rows = []
    for i, (purpose, example) in enumerate(tqdm(chosen, desc="heldout", disable=None)):
        voice = voices.HELDOUT[i % len(voices.HELDOUT)]
        name = f"heldout/{example.kind}-{i:03}.flac"
        if not (folder / name).exists():
            draw = np.random.default_rng([seed, i])
            samples = speakers[voice](example.instruction, draw)
            samples = np.pad(samples, (int(0.1 * SAMPLE_RATE), int(0.2 * SAMPLE_RATE)))
            soundfile.write(folder / name, samples * 0.5 / np.abs(samples).max(), SAMPLE_RATE, subtype="PCM_16")
        rows.append(row(f"{example.kind}-{i:03}", name, example, voice) | {"split": purpose})
    return rows


def row(identity: str, audio: str, example: Example, voice: str) -> dict:
    accept = [example.response, *example.accept]
    about = {"instruction": example.instruction, "kind": example.kind, "accept": accept, "fact": example.fact}
    return {"id": identity, "audio": audio, **about, "voice": voice}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="folder for heldout.jsonl and heldout/")
    parser.add_argument("--chitchat", type=int, default=100, help="chit-chat questions (default: %(default)s)")
    parser.add_argument("--factual", type=int, default=100, help="factual questions (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> int:
    _, heldout = examples(args.seed)
    chosen = split(heldout, {"chitchat": args.chitchat, "factual": args.factual}, args.seed)
    rows = speak(chosen, args.output, args.seed)
    path = args.output / "heldout.jsonl"
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows))
    logger.info("%s: %d questions", path, len(rows))
    return 0
