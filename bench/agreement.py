"""`omni bench agreement`: how often rougher arithmetic chooses what float32 chooses.

    omni bench agreement --dtype bfloat16
    omni bench agreement --dtype bfloat16 --weights int8

Spoken questions are answered by the engine in float32, greedily. Then the engine in the other arithmetic answers them
by itself ("answers wholly equal"), and, given float32's answer up to each of its tokens, chooses the next ("same
token"). Its units for float32's whole answer are compared as texts are ("units in common": difflib's ratio). Everything
is counted, nothing timed: other work on the machine changes nothing.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bench import questions, report, shapes
from bench.turn import add_model_arguments, device_name, load_model
from omni.engine.engine import Engine, EngineConfig
from omni.model.prompt import Utterance
from omni.model.sampling import Sampling


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--questions", type=int, default=20, metavar="N", help="asked (default: %(default)s)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=60, metavar="N", help="of an answer (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")


def main(args: argparse.Namespace) -> int:
    if args.questions < 1 or args.max_new_tokens < 1:
        print("omni bench agreement: at least one question, and at least one token.")
        return 2
    rough = load_model(args)
    about = report.about(device_name(args.device), args.threads)
    exact = shapes.load(args.shape, args.device, torch.float32, args.layers, narrow=args.narrow)
    config = EngineConfig(num_slots=2, max_answer=args.max_new_tokens)
    rough_config = EngineConfig(num_slots=2, max_answer=args.max_new_tokens, weights=args.weights)
    engines = Engine(exact.omni, config), Engine(rough.omni, rough_config)
    asked = questions.recordings()[: args.questions]
    each = [compare(*engines, samples, args.max_new_tokens) for samples in tqdm(asked, desc="questions", disable=None)]
    found = {
        "about": about,
        "shape": rough.name,
        "says": rough.says,
        "dtype": args.dtype,
        "weights": args.weights,
        **judge(each),
    }
    report.save(args.json, found)
    print(report.heading(about))
    print(summary(found))
    return 0


@dataclass(frozen=True)
class Compared:
    """One question's answers."""

    tokens: int  # of float32's
    same: int  # of these: chosen by the other too, the ones before them given
    equal: bool  # the other's own answer is float32's
    units: float  # in common, 0 … 1


def compare(exact: Engine, rough: Engine, samples: np.ndarray, limit: int) -> Compared:
    question = [Utterance("user", speech=samples)]
    tokens, units = answer(exact, question, limit)
    same = sum(answer(rough, question, i + 1, tokens[:i])[0] == [token] for i, token in enumerate(tokens))
    forced = answer(rough, question, len(tokens), tokens[:-1])[1]
    common = SequenceMatcher(None, units, forced, autojunk=False).ratio()
    return Compared(len(tokens), same, answer(rough, question, limit)[0] == tokens, common)


def answer(
    engine: Engine, question: Sequence[Utterance], limit: int, forced: Sequence[int] = ()
) -> tuple[list[int], list[int]]:
    """The tokens after those that are forced, and the units of all."""
    engine.add("turn", question, Sampling(max_new_tokens=limit), tuple(forced))
    tokens: list[int] = []
    units: list[int] = []
    while not engine.idle:
        for output in engine.step():
            if output.error is not None:
                raise output.error
            tokens += output.token_ids
            units += output.units
    return tokens, units


def judge(each: Sequence[Compared]) -> dict[str, Any]:
    tokens = sum(one.tokens for one in each)
    return {
        "questions": len(each),
        "tokens": tokens,
        "same_token": sum(one.same for one in each) / tokens,
        "equal_answers": sum(one.equal for one in each),
        "units_in_common": sum(one.units * one.tokens for one in each) / tokens,
    }


def summary(found: dict[str, Any]) -> str:
    rows = [
        [
            f"{found['dtype']}, {found['weights']} weights",
            f"{100 * found['same_token']:.1f} % of {found['tokens']}",
            f"{found['equal_answers']} of {found['questions']}",
            f"{100 * found['units_in_common']:.1f} %",
        ]
    ]
    names = ["against float32", "same token", "answers wholly equal", "units in common"]
    return f"{found['shape']}: {found['says']}\n\n{report.table(names, rows)}"
