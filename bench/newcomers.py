"""`omni bench newcomers`: questions that come at the same time, their prompts read in one call or one after the other.

    omni bench newcomers                      # the mini checkpoint, 8 at once

Both ways take turns in the same engine, with prompts that it has not met. Measured until each has its first token: CPU
time on a CPU, because it moves less beside other work. Counted: calls of the LLM, and positions through it. Written
prompts, so that nothing is encoded.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench import ceilings, report
from bench.engine import PROMPT, counts
from bench.shapes import Loaded
from bench.turn import add_model_arguments, device_name, load_model
from omni.engine.engine import Engine, EngineConfig
from omni.model.prompt import Utterance
from omni.model.sampling import Sampling

WAYS = ("one call", "one by one")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--newcomers", type=int, default=8, metavar="N", help="at once (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="of either way (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")


def main(args: argparse.Namespace) -> int:
    if args.newcomers < 1 or args.rounds < 1:
        print("omni bench newcomers: at least one newcomer, and at least one round.")
        return 2
    loaded = load_model(args)
    about = report.about(device_name(args.device), args.threads)
    found = {"about": about, "shape": loaded.name, "says": loaded.says} | measure(loaded, args)
    report.save(args.json, found)
    print(report.heading(about))
    print(f"{loaded.name}: {loaded.says}; {args.dtype}, {args.weights} weights\n")
    print(summary(found))
    return 0


def measure(loaded: Loaded, args: argparse.Namespace) -> dict[str, Any]:
    engine = Engine(loaded.omni, EngineConfig(args.newcomers, max_answer=1, weights=args.weights))
    together, number = engine.runner.prefill, 0
    rounds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for i in tqdm(range(1 + args.rounds), desc="rounds", disable=None):
        for way in WAYS if i % 2 else WAYS[::-1]:
            one_by_one = lambda pieces: [result for each in pieces for result in together([each])]  # noqa: E731
            engine.runner.prefill = together if way == "one call" else one_by_one  # type: ignore[method-assign]
            cost = first_tokens(engine, args.newcomers, number)
            number += args.newcomers
            if i:  # the first one warms up
                rounds[way].append(cost)
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(*rounds.values(), strict=True)]
    return {"newcomers": args.newcomers, "rounds": rounds, "ratio": report.interval(ratios)}


def first_tokens(engine: Engine, newcomers: int, number: int) -> dict[str, float]:
    """So many questions, the number-th and following: what it takes until each has its only token."""
    for i in range(number, number + newcomers):
        engine.add(f"turn {i}", [Utterance("user", text=f"{i:06}: {PROMPT}")], Sampling(max_new_tokens=1))
    clock = time.process_time if engine.omni.device.type == "cpu" else time.perf_counter
    (calls, rows, _), started, tokens = counts(engine), clock(), 0
    while not engine.idle:
        for output in engine.step():
            if output.error is not None:
                raise output.error
            tokens += len(output.token_ids)
    ceilings.synchronize(engine.omni.device)
    seconds = clock() - started
    assert tokens == newcomers, "a token each"
    return {"seconds": seconds, "calls": counts(engine)[0] - calls, "positions": counts(engine)[1] - rows}


def summary(found: dict[str, Any]) -> str:
    rows = []
    for way, costs in found["rounds"].items():
        middle = {name: statistics.median(each[name] for each in costs) for name in costs[0]}
        rows.append(
            [way, report.milliseconds(middle["seconds"]), f"{middle['calls']:.0f}", f"{middle['positions']:.0f}"]
        )
    names = [f"{found['newcomers']} newcomers", "first tokens of all, ms", "calls of the LLM", "positions"]
    return f"{report.table(names, rows)}\n\none by one / one call: {report.ratio(found['ratio'])}"
