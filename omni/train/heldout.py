"""The held-out questions and dialogues: new phrasings, spoken by voices that no training question is asked by.

    omni train heldout --output omni/train/data      # writes heldout.jsonl and heldout/*.flac, which ship
    omni train heldout --output omni/train/data --chitchat 0 --factual 0 --dialogues 60     # dialogues.jsonl

A line: id, audio (relative to the file), instruction, kind ("chitchat" or "factual"), accept (responses that fit),
fact (what a fitting answer names, or null), voice, split ("development": looked at while training; "test": not).
A dialogue's question means nothing without the one before it ("And what about Belgium?"), which is its history.
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
from omni.train.instructions import Example, examples, follow_ups
from omni.train.words import contains, words

logger = logging.getLogger(__name__)
DEVELOPMENT = {"chitchat": 60, "factual": 40}  # the first ones of a kind; the others are for the test
BITS = 12  # of a dialogue's samples: below every room's noise, and half the bytes of 16


def choose(heldout: Sequence[Example], kind: str, count: int, seed: int) -> list[Example]:
    """`count` questions of a kind, spread evenly over its intents or relations, then at random."""
    draw = np.random.default_rng([seed, *kind.encode()])
    waiting: dict[str, list[Example]] = {}
    for example in heldout:
        if example.kind == kind:
            waiting.setdefault(_relation(example), []).append(example)
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


def converse(
    train: Sequence[Example], heldout: Sequence[Example], count: int, seed: int
) -> list[tuple[str, Example, Example]]:
    """`count` dialogues, (split, first question, follow-up), those for development first.

    The first question is a training question of the follow-up's relation with an answer that does not fit the
    follow-up. The two splits share no follow-up, and a follow-up that comes again follows another question.
    """
    spread = choose(heldout, "follow-up", len(heldout), seed)
    draw = np.random.default_rng([seed, *b"dialogue"])
    found: list[tuple[str, Example, Example]] = []
    for purpose, part, size in (("development", spread[::2], count - count // 2), ("test", spread[1::2], count // 2)):
        asked: set[tuple[str, str]] = set()
        for i in range(size):
            second = part[i % len(part)]
            groups: dict[str, list[Example]] = {}
            for each in train:
                if _may_precede(each, second) and (each.group, second.group) not in asked:
                    groups.setdefault(each.group, []).append(each)
            of_one = groups[str(draw.choice(sorted(groups)))]
            first = of_one[draw.integers(len(of_one))]
            asked.add((first.group, second.group))
            found.append((purpose, first, second))
    return found


def _may_precede(first: Example, second: Example) -> bool:
    assert second.fact, "what is followed up is a fact"
    return (
        (first.kind, _relation(first)) == ("factual", _relation(second))
        and first.group != second.group
        and not contains(words(first.response), words(second.fact))
    )


def _relation(example: Example) -> str:
    return example.group.split("/")[0]


def speak(chosen: Sequence[tuple[str, Example]], folder: Path, seed: int) -> list[dict]:
    """Write the questions as FLAC files into folder/heldout and return their rows; each speaker asks every fourth."""
    (folder / "heldout").mkdir(parents=True, exist_ok=True)
    speakers = {name: voices.make(f"kokoro/{name}") for name in voices.HELDOUT}
    rows = []
    for i, (purpose, example) in enumerate(tqdm(chosen, desc="heldout", disable=None)):
        voice = voices.HELDOUT[i % len(voices.HELDOUT)]
        name = f"heldout/{example.kind}-{i:03}.flac"
        _record(folder / name, speakers[voice], example.instruction, np.random.default_rng([seed, i]))
        rows.append(row(f"{example.kind}-{i:03}", name, example, voice) | {"split": purpose})
    return rows


def speak_dialogues(chosen: Sequence[tuple[str, Example, Example]], folder: Path, seed: int) -> list[dict]:
    """As above, into folder/heldout/dialogues. A dialogue has one speaker, at one speed."""
    (folder / "heldout" / "dialogues").mkdir(parents=True, exist_ok=True)
    speakers = {name: voices.make(f"kokoro/{name}") for name in voices.HELDOUT}
    rows = []
    for i, (purpose, first, second) in enumerate(tqdm(chosen, desc="dialogues", disable=None)):
        voice = voices.HELDOUT[i % len(voices.HELDOUT)]
        names = [f"heldout/dialogues/{i:03}-{place}.flac" for place in (1, 2)]
        for name, example in zip(names, (first, second), strict=True):
            draw = np.random.default_rng([seed, i])  # the same draws in both
            _record(folder / name, speakers[voice], example.instruction, draw, BITS)
        earlier = {"audio": names[0], "instruction": first.instruction, "response": first.response}
        rows.append(row(f"dialogue-{i:03}", names[1], second, voice) | {"split": purpose, "history": [earlier]})
    return rows


def _record(path: Path, speaker: voices.Voice, text: str, draw: np.random.Generator, bits: int = 16) -> None:
    """What exists is kept. FLAC leaves out the zeros below `bits`."""
    if path.exists():
        return
    samples = np.pad(speaker(text, draw), (int(0.1 * SAMPLE_RATE), int(0.2 * SAMPLE_RATE)))
    samples = samples * 0.5 / np.abs(samples).max()
    step = 2.0 ** (1 - bits)
    soundfile.write(path, samples if bits == 16 else np.round(samples / step) * step, SAMPLE_RATE, subtype="PCM_16")


def row(identity: str, audio: str, example: Example, voice: str) -> dict:
    accept = [example.response, *example.accept]
    about = {"instruction": example.instruction, "kind": example.kind, "accept": accept, "fact": example.fact}
    return {"id": identity, "audio": audio, **about, "voice": voice}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="folder for heldout.jsonl, dialogues.jsonl and "
                        "heldout/; a file is written where something is asked for")  # fmt: skip
    parser.add_argument("--chitchat", type=int, default=100, help="chit-chat questions (default: %(default)s)")
    parser.add_argument("--factual", type=int, default=100, help="factual questions (default: %(default)s)")
    parser.add_argument("--dialogues", type=int, default=0, help="dialogues of two turns (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> int:
    train, heldout = examples(args.seed)
    if args.chitchat or args.factual:
        chosen = split(heldout, {"chitchat": args.chitchat, "factual": args.factual}, args.seed)
        _write(args.output / "heldout.jsonl", speak(chosen, args.output, args.seed))
    if args.dialogues:
        dialogues = converse(train, follow_ups()[1], args.dialogues, args.seed)
        _write(args.output / "dialogues.jsonl", speak_dialogues(dialogues, args.output, args.seed))
    return 0


def _write(path: Path, rows: Sequence[dict]) -> None:
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows))
    logger.info("%s: %d rows", path, len(rows))
