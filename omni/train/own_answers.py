"""Many questions → the LLM's own answers: what it will say when it serves, for the unit decoder to learn to speak.

    omni train own --output runs/mini --delta runs/mini/export/llm_delta.safetensors --count 5000

Half of the questions are written ones that were only heard so far (data/heard.txt), half are spoken and reach the LLM
as the adaptor might mishear them. The answers are often wrong; that does not matter for how they sound. Lines of
RUN/own.jsonl: instruction, response, kind "own", and the prompt's ids, so that the states can be computed later.
Sentences to repeat, more than answers.jsonl has, come beside them in RUN/repeats.jsonl: words in other surroundings,
rare ones among them.
"""

import argparse
import json
import logging
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from omni.model.prompt import SPEECH, Prompt, Utterance
from omni.train import keep, speech, surroundings
from omni.train.answering import generate
from omni.train.ear import Ear, load
from omni.train.following import SHARPNESS, Misheard
from omni.train.instructions import REQUESTS, heard
from omni.train.low_rank import add_deltas, merge
from omni.train.stage1 import load_llm

logger = logging.getLogger(__name__)
TOGETHER = 256  # questions between two writings
ROWS = 64  # of one generation
REPEATED = 13  # words of the longest sentence to repeat


def written(prompt: Prompt, count: int, seed: int) -> list[tuple[str, list[int]]]:
    """(question, the prompt's ids)"""
    texts = [each.instruction for each in heard()]
    random.Random(seed).shuffle(texts)
    return [(text, prompt([Utterance("user", text=text)])) for text in texts[:count]]


def spoken(
    folder: Path, prompt: Prompt, ear: Ear, ids: Tensor, count: int, seed: int
) -> Iterator[tuple[str, list[int]]]:
    """The same for utterances, as they might be misheard. `ids` (K + 1,) are the adaptor's tokens', silence last."""
    torch.manual_seed(seed)
    misheard = Misheard(ear, SHARPNESS)
    around = prompt([Utterance("user", speech=np.zeros(0, np.float32))])
    at = around.index(SPEECH)
    left = count
    for path in sorted(folder.glob("*.safetensors")):
        for said in speech.read_shard(path):
            if not said.example.response or said.example.kind == "follow-up":  # which means nothing alone
                continue
            if left == 0:
                return
            left -= 1
            classes = misheard.classes([said.mel], mask=True)[0]
            heard_ids = ids[misheard.tokens.order(classes)[0]].tolist()
            yield said.text, [*around[:at], *heard_ids, *around[at + 1 :]]


def repeats(count: int, seed: int) -> list[dict]:
    """Sentences to say again: questions that were only heard so far, and a third that say every word alike."""
    draw = random.Random(seed)
    rare = list(islice(surroundings.make(seed, surroundings.every_word(()), surroundings.SWAPPED_RARE), count // 3))
    texts = [each.instruction for each in heard() if 3 <= len(each.instruction.split()) <= REPEATED]
    draw.shuffle(texts)
    chosen = [*rare, *texts[: count - len(rare)]]
    return [{"instruction": draw.choice(REQUESTS) + text, "response": text, "kind": "repeat"} for text in chosen]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="folder of the run, with its llm/ and speech/")
    parser.add_argument("--delta", type=Path, help="llm_delta.safetensors; the LLM as packaged unless given")
    parser.add_argument("--adaptor", type=Path, help="one that hands on tokens; without it, questions are written ones")
    parser.add_argument("--speech", type=Path, help="folder of the shards (default: the run's speech/)")
    parser.add_argument("--count", type=int, default=5000, help="questions (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5000, help="sentences to repeat (default: %(default)s)")
    parser.add_argument("--rank", type=int, default=32, help="of the deltas (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> int:
    """Goes on behind the last line that a killed run wrote."""
    llm, tokenizer = load_llm(args.output / "llm", torch.bfloat16)
    if args.delta:
        merge(add_deltas(llm, args.rank), llm, args.delta)
    prompt, embeddings = Prompt("chatml", tokenizer), llm.model.embed_tokens
    jobs: list[tuple[str, list[int]]] = []
    if args.adaptor:
        ids = load_file(args.adaptor)["tokens.ids"].long()
        ear = load(args.adaptor, embeddings.weight)
        jobs += spoken(args.speech or args.output / "speech", prompt, ear, ids, args.count // 2, args.seed)
    jobs += written(prompt, args.count - len(jobs), args.seed)
    random.Random(args.seed).shuffle(jobs)
    keep.text(
        args.output / "repeats.jsonl", "".join(json.dumps(row) + "\n" for row in repeats(args.repeats, args.seed))
    )
    run: Any = SimpleNamespace(llm=llm, tokenizer=tokenizer)
    path = args.output / "own.jsonl"
    done = _whole_lines(path)
    with path.open("a") as file, torch.inference_mode():
        for start in tqdm(range(done, len(jobs), TOGETHER), desc="answering", disable=None):
            some = jobs[start : start + TOGETHER]
            prompts = [embeddings(torch.tensor(ids)).float() for _, ids in some]
            answers = generate(run, prompts, limit=32, size=ROWS)
            rows = [
                {"instruction": question, "response": answer, "kind": "own", "prompt": ids}
                for (question, ids), answer in zip(some, answers, strict=True)
            ]
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
    logger.info("%d questions answered: %s", len(jobs), path)
    return 0


def _whole_lines(path: Path) -> int:
    """How many answers are there; a last line that a kill cut short is taken off."""
    if not path.exists():
        return 0
    whole, _, rest = path.read_text().rpartition("\n")
    if rest:
        path.write_text(f"{whole}\n" if whole else "")
    return len(whole.splitlines())
