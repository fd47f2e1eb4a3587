"""`omni bench turn`: first audio and time per stage, ours against the published path, interleaved in one process.

    omni bench turn                                   # the mini checkpoint, twelve questions of 4 s
    omni bench turn --shape 8b --device cuda --dtype bfloat16

Ours is the engine and the vocoder, naive is bench/naive.py; both with the same weights, dtype and threads, taking turns
question by question. The naive path is given our tokens, so that both say the same words: padding a question changes
what a true-length checkpoint answers. First audio counts from the question's last sample to the first sound. Every
question is new to the engine's memory of prompts, but its system prompt may be remembered, as in a server that runs.
Stages are timed in further questions, because a stopwatch makes a GPU wait. "same" is ours against ours: the noise.
"""

import argparse
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bench import questions, report
from bench.naive import Naive
from bench.ours import Ours
from bench.pieces import Heard, listen
from bench.shapes import NARROW, SHAPES, Loaded, load
from bench.stopwatch import Stopwatch
from omni.engine.engine import EngineConfig
from omni.engine.projection import WEIGHTS

STAGES = ("mel", "encode", "adapt", "prefill", "steps", "units", "vocode")
DTYPES = ("float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--questions", type=int, default=12, metavar="N", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each question (default: %(default)s)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, metavar="N", help="of each answer (default: %(default)s)"
    )
    parser.add_argument("--stage-questions", type=int, default=3, metavar="N", help="for the stages (default: 3)")
    parser.add_argument("--true-length", action="store_true", help="with --shape 8b: ours does not pad")
    parser.add_argument("--as-shipped", action="store_true", help="naive with the costs its paper leaves out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """What the other benchmarks of a model take as well."""
    model = parser.add_argument_group("the model")
    model.add_argument(
        "--shape", default="mini", help=f"{', '.join(SHAPES)} or a checkpoint directory (default: %(default)s)"
    )
    model.add_argument("--layers", type=int, metavar="N", help="with --shape 8b: only so many, for small machines")
    model.add_argument(
        "--narrow", type=int, choices=NARROW, default=1, help="with --shape 8b: divide its widths, likewise"
    )
    model.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    model.add_argument("--dtype", choices=DTYPES, default=None, help="default: float32 on a CPU, bfloat16 on a GPU")
    model.add_argument("--weights", choices=WEIGHTS, default="float", help="of our engine (default: %(default)s)")
    model.add_argument("--threads", type=int, default=1, help="CPU threads of either (default: %(default)s)")


def main(args: argparse.Namespace) -> int:
    if args.questions < 1 or args.max_new_tokens < 1 or not 0 < args.seconds <= 30:
        print("omni bench turn: at least one question of up to 30 s, and at least one token.")
        return 2
    loaded = load_model(args, args.true_length)
    about = report.about(device_name(args.device), args.threads)
    found = measure(loaded, args)
    report.save(args.json, {"about": about, "shape": loaded.name, "says": loaded.says} | found)
    print(report.heading(about))
    print(f"{loaded.name}: {loaded.says}; {args.dtype}, {args.weights} weights in the engine\n")
    print(summary(found))
    return 0


def load_model(args: argparse.Namespace, true_length: bool = False) -> Loaded:
    """Threads set, dtype chosen, model loaded."""
    torch.set_num_threads(args.threads)
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    return load(args.shape, args.device, getattr(torch, args.dtype), args.layers, true_length, args.narrow)


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else ""


@dataclass
class Trials:
    """One entry per question."""

    ours: list[Heard] = field(default_factory=list)
    naive: list[Heard] = field(default_factory=list)
    again: list[Heard] = field(default_factory=list)  # ours, to its first audio


def measure(loaded: Loaded, args: argparse.Namespace) -> dict[str, Any]:
    limit = args.max_new_tokens
    ours = Ours(loaded.omni, loaded.vocoder, EngineConfig(num_slots=2, max_answer=limit, weights=args.weights))
    naive = Naive(loaded.omni, loaded.vocoder, as_shipped=args.as_shipped)
    asked = questions.load(args.questions, args.seconds)
    warm_up(ours, naive, loaded, asked[0])
    trials, watches = Trials(), {"ours": Stopwatch(loaded.omni.device), "naive": Stopwatch(loaded.omni.device)}
    for i in tqdm(range(len(asked)), desc="questions", disable=None):
        ask(ours, naive, loaded, asked[i], limit, i, trials)
    for i in tqdm(range(args.stage_questions), desc="stages", disable=None):
        question = questions.fresh(asked[i % len(asked)], 3000 + i)
        with watches["ours"].on(*our_places(ours)):
            heard = _hear(ours, loaded, question, limit, i)
        with watches["naive"].on(*naive_places(naive)):
            _hear_naive(naive, loaded, question, heard, i)
    return results(trials, watches, args.stage_questions)


def warm_up(ours: Ours, naive: Naive, loaded: Loaded, question: np.ndarray) -> None:
    """Kernels are chosen and compiled at the first use of a shape."""
    for number in (1, 2):
        fresh = questions.fresh(question, 1000 + number)
        heard = _hear(ours, loaded, fresh, 16, number)
        _hear_naive(naive, loaded, fresh, heard, number)


def ask(ours: Ours, naive: Naive, loaded: Loaded, question: np.ndarray, limit: int, i: int, trials: Trials) -> None:
    """ours, naive, ours: a drift of the machine is in both sides of a ratio."""
    own, other = questions.fresh(question, i), questions.fresh(question, 2000 + i)
    heard = _hear(ours, loaded, own, limit, i)
    trials.ours.append(heard)
    trials.naive.append(_hear_naive(naive, loaded, own, heard, i))
    trace = loaded.trace(i)
    pieces = ours.answer(other, _limit(limit, trace), trace)
    trials.again.append(listen(pieces, until_audio=True))
    pieces.close()  # type: ignore[attr-defined]


def _hear(ours: Ours, loaded: Loaded, question: np.ndarray, limit: int, number: int) -> Heard:
    trace = loaded.trace(number)
    return listen(ours.answer(question, _limit(limit, trace), trace))


def _hear_naive(naive: Naive, loaded: Loaded, question: np.ndarray, ours: Heard, number: int) -> Heard:
    return listen(naive.answer(question, len(ours.token_ids), ours.token_ids, loaded.trace(number)))


def _limit(limit: int, trace: Any) -> int:
    return limit if trace is None else min(limit, trace.num_tokens)


def our_places(ours: Ours) -> list[tuple[Any, str, str]]:
    omni, runner = ours.engine.omni, ours.engine.runner
    return [
        *_front(omni),
        (runner, "prefill", "prefill"),
        (runner, "decode", "steps"),
        (runner, "speech", "units"),
        (ours, "render", "vocode"),
    ]


def naive_places(naive: Naive) -> list[tuple[Any, str, str]]:
    return [
        *_front(naive.omni),
        (naive, "mel", "mel"),
        (naive, "prefill", "prefill"),
        (naive, "decode", "steps"),
        (naive, "units", "units"),
        (naive, "vocode", "vocode"),
    ]


def _front(omni: Any) -> list[tuple[Any, str, str]]:
    return [(omni, "mel", "mel"), (omni, "encoder", "encode"), (omni, "adaptor", "adapt")]


def results(trials: Trials, watches: dict[str, Stopwatch], num_staged: int) -> dict[str, Any]:
    heard = [
        (ours, naive, again)
        for ours, naive, again in zip(trials.ours, trials.naive, trials.again, strict=True)
        if ours.first_audio and naive.first_audio and again.first_audio
    ]
    if not heard:
        raise RuntimeError("No answer had any sound: nothing to measure. Try more questions or more tokens.")
    return {
        "num_questions": len(trials.ours),
        "num_heard": len(heard),
        "ratios": {
            "first_audio": report.interval([_audio(naive) / _audio(ours) for ours, naive, _ in heard]),
            "first_audio_cpu": report.interval([_cpu(naive) / _cpu(ours) for ours, naive, _ in heard]),
            "turn": report.interval([naive.total / ours.total for ours, naive, _ in heard]),
            "same": report.interval([_audio(again) / _audio(ours) for ours, _, again in heard]),
        },
        "ours": _contestant(trials.ours, watches["ours"], num_staged),
        "naive": _contestant(trials.naive, watches["naive"], num_staged),
    }


def _audio(heard: Heard) -> float:
    assert heard.first_audio is not None
    return heard.first_audio


def _cpu(heard: Heard) -> float:
    assert heard.first_audio_cpu is not None
    return heard.first_audio_cpu


def _contestant(answers: Iterable[Heard], watch: Stopwatch, num_staged: int) -> dict[str, Any]:
    answers = list(answers)
    firsts = [heard.first_audio for heard in answers if heard.first_audio is not None]
    return {
        "first_audio": {name: report.quantile(firsts, q) for name, q in (("p50", 0.5), ("p95", 0.95))},
        "first_audio_each": firsts,
        "first_audio_cpu": {"p50": report.quantile([_cpu(each) for each in answers if each.first_audio_cpu], 0.5)},
        "turn": {"p50": report.quantile([heard.total for heard in answers], 0.5)},
        "turns_per_second": len(answers) / sum(heard.total for heard in answers),
        "tokens_before_audio": statistics.mean(heard.tokens_before_audio for heard in answers),
        "tokens": statistics.mean(len(heard.token_ids) for heard in answers),
        "units": statistics.mean(len(heard.units) for heard in answers),
        "seconds_of_speech": statistics.mean(heard.seconds for heard in answers),
        "stages": {stage: watch.seconds[stage] / num_staged for stage in STAGES if stage in watch.seconds},
        "calls": {stage: watch.calls[stage] / num_staged for stage in STAGES if stage in watch.calls},
    }


def summary(found: dict[str, Any]) -> str:
    ours, naive, ratios = found["ours"], found["naive"], found["ratios"]

    def row(name: str, pick: Any, ratio: str = "") -> list[str]:
        return [name, pick(ours), pick(naive), ratio]

    rows = [
        row(
            "first audio, p50, ms",
            lambda x: report.milliseconds(x["first_audio"]["p50"]),
            report.ratio(ratios["first_audio"]),
        ),
        row(
            "the same in CPU time, p50, ms",
            lambda x: report.milliseconds(x["first_audio_cpu"]["p50"]),
            report.ratio(ratios["first_audio_cpu"]),
        ),
        row("first audio, p95, ms", lambda x: report.milliseconds(x["first_audio"]["p95"])),
        row("whole answer, p50, ms", lambda x: report.milliseconds(x["turn"]["p50"]), report.ratio(ratios["turn"])),
        row("answers per second, one at a time", lambda x: f"{x['turns_per_second']:.2f}"),
        row("tokens until first audio", lambda x: f"{x['tokens_before_audio']:.1f}"),
        row("tokens · seconds of speech", lambda x: f"{x['tokens']:.0f} · {x['seconds_of_speech']:.1f}"),
    ]
    for stage in STAGES:
        rows.append(row(f"{stage}, ms an answer", lambda x, stage=stage: report.milliseconds(x["stages"].get(stage))))
    note = f"ratios: median over {found['num_heard']} questions and its 95 % interval; ours against itself "
    return report.table(["", "ours", "naive", "naive / ours"], rows) + f"\n\n{note}{report.ratio(ratios['same'])}"
