"""Training questions as the encoder reads them: texts → many voices → log-mel, kept in shards.

    omni train data --output runs/mini --voice hibari --count 14000
    omni train data --output runs/mini --voice hibari --count 12000 --texts heard    # words in other surroundings
    omni train data --output runs/mini --voice hibari --count 12000 --texts mixed    # sentences for the ear alone
    omni train data --output runs/mini --voice hibari --count 12000 --texts rare     # the same with rare words in them
    omni train data --output runs/mini --voice kokoro --count 1500    # at the same time, on another core

Log-mel is kept rather than what the encoder makes of it: it is less than half as much, and the encoder may learn too.
A shard appears whole or not at all: a run that was killed goes on with the first missing shard. Everything follows from
the seed; texts are drawn in a fixed random order.
"""

import argparse
import json
import logging
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from omni.audio import mel
from omni.train import surroundings, voices
from omni.train.instructions import Example, examples, follow_ups, heard, open_with

logger = logging.getLogger(__name__)
SHARD = 250  # utterances
NUM_MELS = 80  # of Whisper up to large-v2
FASTEST = 30.0  # seconds an utterance may last: the encoder's positions


class ShardError(ValueError):
    """A shard holds something else than speech as it is kept today."""


@dataclass(frozen=True)
class Spoken:
    """One utterance: what was said, by whom, and what reaches the encoder of it."""

    example: Example
    text: str  # the instruction, as it was begun
    voice: str
    mel: Tensor  # (F, n_mels) fp16 at 100 Hz, F a multiple of 10


def plan(train: Sequence[Example], voice: str, count: int, seed: int) -> list[Example]:
    """`count` questions for one voice, in random order: every answerable text before any is repeated."""
    draw = np.random.default_rng([seed, *voice.encode()])
    asked = [each for each in train if each.kind in ("chitchat", "factual")]
    asked += [each for each in train if each.kind == "factual"]  # once more, begun in another way
    asked += [each for each in train if each.kind == "everyday"] * 4
    asked += [each for each in train if each.kind == "trivia"] if voice == "hibari" else []
    order = np.concatenate([draw.permutation(len(asked)) for _ in range(-(-count // len(asked)))])[:count]
    return [asked[i] for i in order]


def shuffled(chosen: Sequence[Example], seed: int) -> list[Example]:
    return random.Random(seed).sample(chosen, len(chosen))


def write_shards(folder: Path, chosen: Sequence[Example], name: str, seed: int, voice: voices.Voice) -> None:
    """Speak the chosen examples into folder/NAME-0000.safetensors and so on, leaving what is there.

    The name begins with the voice's and belongs to the seed: other texts by the same voice take another name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(chosen), SHARD):
        path = folder / f"{name.replace('/', '-')}-{start // SHARD:04}.safetensors"
        if path.exists():
            continue
        spoken = []
        for i, example in enumerate(tqdm(chosen[start : start + SHARD], desc=path.stem, disable=None), start):
            draw = np.random.default_rng([seed, *name.encode(), i])
            text = begin(example, draw)
            samples = voices.room(voice(text, draw), draw)
            if len(samples) > FASTEST * 16_000:
                logger.warning("%s: %r lasts too long; left out.", path.stem, example.instruction)
                continue
            spoken.append(Spoken(example, text, name, log_mel(samples)))
        write_shard(path, spoken)
        logger.info("%s: %d utterances", path, len(spoken))


def begin(example: Example, draw: np.random.Generator) -> str:
    """What is said: some factual questions begin with a word to the listener."""
    if example.kind == "factual" and draw.random() < 0.3:
        return open_with(example.instruction, random.Random(int(draw.integers(2**31))))
    return example.instruction


def log_mel(samples: np.ndarray) -> Tensor:
    """(S,) at 16 kHz → (F, n_mels) fp16 at 100 Hz, true length."""
    return mel.log_mel(mel.pad_to_embedding(samples), NUM_MELS).T.half().contiguous()


def write_shard(path: Path, spoken: Sequence[Spoken]) -> None:
    rows = [vars(each.example) | {"text": each.text, "voice": each.voice, "frames": len(each.mel)} for each in spoken]
    partial = path.with_suffix(f".partial-{os.getpid()}")
    save_file({"mel": torch.cat([each.mel for each in spoken])}, partial, {"rows": json.dumps(rows)})
    partial.rename(path)


def read_shard(path: Path) -> Iterator[Spoken]:
    """Raises ShardError for a shard that does not hold log-mel, as those of older versions."""
    with safe_open(path, framework="pt") as shard:
        if "mel" not in shard.keys():  # noqa: SIM118 (not a dict)
            raise ShardError(f"{path} holds no log-mel: remove it, and make it anew with omni train data.")
        rows, frames = json.loads(shard.metadata()["rows"]), shard.get_tensor("mel")
    start = 0
    for row in rows:
        length, voice, text = row.pop("frames"), row.pop("voice"), row.pop("text")
        row["accept"] = tuple(row["accept"])
        yield Spoken(Example(**row), text, voice, frames[start : start + length])
        start += length


def read_all(folder: Path) -> list[Spoken]:
    return [spoken for path in sorted(folder.glob("*.safetensors")) for spoken in read_shard(path)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="folder of the run; shards go to its speech/")
    parser.add_argument(
        "--voice", default="hibari", help="hibari, joe, kokoro or kokoro/SPEAKER (default: %(default)s)"
    )
    parser.add_argument(
        "--texts",
        choices=("asked", "heard", "mixed", "rare", "follow-ups"),
        default="asked",
        help="questions that are answered, or only heard; sentences of common words, or of all words alike, in new "
        "surroundings; or what is asked after a question",
    )
    parser.add_argument("--count", type=int, default=1000, help="utterances (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    train, _ = examples(args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    write_answers(args.output / "answers.jsonl", train)
    if args.texts == "heard":
        name, chosen = f"{args.voice}-heard", heard()[: args.count]
    elif args.texts == "mixed":
        texts = islice(surroundings.make(args.seed, surroundings.common_words()), args.count)
        name, chosen = f"{args.voice}-mixed{args.seed}", [Example(text, "", "heard", "mixed") for text in texts]
    elif args.texts == "follow-ups":
        name, chosen = f"{args.voice}-follow", shuffled(follow_ups()[0], args.seed)[: args.count]
    elif args.texts == "rare":
        words = surroundings.every_word(surroundings.common_words(20_000))
        texts = islice(surroundings.make(args.seed, words, surroundings.SWAPPED_RARE, shortest=1), args.count)
        name, chosen = f"{args.voice}-rare{args.seed}", [Example(text, "", "heard", "rare") for text in texts]
    else:
        name, chosen = args.voice, plan(train, args.voice, args.count, args.seed)
    write_shards(args.output / "speech", chosen, name, args.seed, voices.make(args.voice))
    return 0


def write_answers(path: Path, train: Sequence[Example]) -> None:
    """Every distinct response once, with a question it answers: what the answering voice has to say."""
    if path.exists():
        return
    rows = {each.response: each for each in reversed(train) if each.response}
    ordered = sorted(rows.values(), key=lambda each: each.kind == "repeat")
    lines = [json.dumps({"instruction": e.instruction, "response": e.response, "kind": e.kind}) for e in ordered]
    path.write_text("\n".join(lines) + "\n")
