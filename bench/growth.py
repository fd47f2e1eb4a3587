"""`omni bench growth`: how cost grows with the length of an answer, of a conversation, and with the number of sessions.

    omni bench growth                         # the mini checkpoint, answers of 200 tokens
    omni bench growth --plot growth.png

Answers: what token 1, 2 … 200 costs in the engine and on the published path, which runs its unit decoder over the whole
answer again; with the positions that went through LLM and unit decoder, counted. Conversations: a session's next
question, of which the engine remembers the earlier turns, against an engine that has forgotten them and against the
published path. Sessions: a step of several, against the published path, which answers one after the other.
"""

import argparse
import importlib.util
import statistics
import string
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench import ceilings, engine, plot, report
from bench.naive import Naive
from bench.shapes import Loaded
from bench.turn import add_model_arguments, device_name, load_model
from omni.engine.engine import Engine, EngineConfig
from omni.model.omni import Omni
from omni.model.prompt import Utterance
from omni.model.sampling import Sampling

ASKED = "And what else do you know about the sea and the mountains of the north, and the people there?"
ANSWERED = "There are many villages at the sea, and the people catch fish, build boats and tell old stories at night."
LETTERS = string.ascii_uppercase
HISTORIES = (0, 1, 2, 4, 8, 16, 32)  # earlier turns
POSITIONS = "positions, LLM + units"
ENDS = 20  # tokens at either end of an answer whose costs are compared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--tokens", type=int, default=200, metavar="N", help="of an answer (default: %(default)s)")
    parser.add_argument("--every", type=int, default=10, metavar="N", help="of naive's tokens is spoken (default: 10)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="the median counts (default: %(default)s)")
    parser.add_argument("--max-history", type=int, default=16, metavar="N", help="earlier turns (default: %(default)s)")
    parser.add_argument("--max-sessions", type=int, default=8, metavar="N", help="at once (default: %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw all three")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")


def main(args: argparse.Namespace) -> int:
    if problem := _problem(args):
        print(f"omni bench growth: {problem}", file=sys.stderr)
        return 2
    loaded = load_model(args)
    about = report.about(device_name(args.device), args.threads)
    loaded.omni.config = replace(loaded.omni.config, eos_token_ids=())  # nobody ends by himself
    naive = Naive(loaded.omni, loaded.vocoder)
    found = {
        "about": about,
        "shape": loaded.name,
        "says": loaded.says,
        "answer": answers(loaded.omni, naive, args),
        "history": histories(loaded.omni, naive, args),
        "sessions": sessions(loaded, naive, args),
    }
    report.save(args.json, found)
    print(report.heading(about))
    print(summary(loaded, found))
    if args.plot:
        plot.growth(found, args.plot)
    return 0


def _problem(args: argparse.Namespace) -> str | None:
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        return plot.MISSING
    if args.tokens < 2 * ENDS:
        return f"--tokens is {args.tokens}; it is at least {2 * ENDS}."
    for name, least in (("every", 1), ("rounds", 1), ("max_history", 0), ("max_sessions", 1)):
        if getattr(args, name) < least:
            return f"--{name.replace('_', '-')} is {getattr(args, name)}; it is at least {least}."
    return None


# --- how long an answer is ----------------------------------------------------------------------------------------


def answers(omni: Omni, naive: Naive, args: argparse.Namespace) -> dict[str, Any]:
    rounds = [list(our_steps(omni, args.tokens, args.weights)) for _ in _bar(range(args.rounds), "answers")]
    costs = [statistics.median(each[i][0] for each in rounds) for i in range(args.tokens)]
    ours = [{"token": i + 1, "seconds": seconds, "rows": rounds[0][i][1]} for i, seconds in enumerate(costs)]
    theirs = list(_bar(naive_steps(naive, args.tokens, args.every), "published path", args.tokens))
    spoken = [each for each in theirs if each["units"] is not None]
    costs = costs[1:]  # the first one comes with the prompt
    return {
        "ours": ours,
        "naive": theirs,
        "ours_last_over_first": statistics.median(costs[-ENDS:]) / statistics.median(costs[:ENDS]),
        "naive_last_over_first": (spoken[-1]["seconds"] + spoken[-1]["units"])
        / (spoken[0]["seconds"] + spoken[0]["units"]),
    }


def our_steps(omni: Omni, tokens: int, weights: str) -> Iterator[tuple[float, list[int]]]:
    """Seconds of each token, and the positions it took through LLM and unit decoder; the first with the prompt."""
    question = [Utterance("user", text=ASKED)]
    one = Engine(omni, EngineConfig(1, max_tokens=_room(omni, question, tokens), max_answer=tokens, weights=weights))
    one.add("turn", question, Sampling(max_new_tokens=tokens))
    for _ in range(tokens):
        before, started = engine.counts(one), time.perf_counter()
        one.step()
        ceilings.synchronize(omni.device)
        spent = time.perf_counter() - started
        yield spent, [after - then for after, then in zip(engine.counts(one), before, strict=True)][1:]


@torch.inference_mode()
def naive_steps(naive: Naive, tokens: int, every: int) -> Iterator[dict[str, Any]]:
    """Each token's seconds in the LLM; for every some of them also those of the units, over the whole answer."""
    omni = naive.omni
    embeds = omni.prompt_embeds([Utterance("user", text=ASKED)])
    step, token = naive.prefill(embeds), 0
    for i in range(tokens):
        started = time.perf_counter()
        step = step if i == 0 else naive.decode(token, step)
        token = int(omni.llm.logits(step.last)[0, 0].argmax())
        spent, units, before = time.perf_counter() - started, None, naive.work.unit_rows
        if i % every == 0 or i == tokens - 1:
            started = time.perf_counter()
            naive.units(step)
            units = time.perf_counter() - started
        if i:
            rows = (i + 1) * omni.config.upsample
            assert units is None or naive.work.unit_rows - before == rows, "the whole answer is spoken again"
            yield {"token": i + 1, "seconds": spent, "units": units, "rows": [1, rows]}


def _room(omni: Omni, conversation: Sequence[Utterance], tokens: int) -> int:
    return len(omni.prompt(conversation)) + tokens


# --- how long a conversation is -----------------------------------------------------------------------------------


def histories(omni: Omni, naive: Naive, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Points where the conversation still fits into a slot."""
    fits = [n for n in HISTORIES if n <= args.max_history and _room(omni, talk(n), 8) <= omni.config.max_tokens]
    kept = Engine(omni, EngineConfig(num_slots=2, max_answer=8, weights=args.weights))
    forgetful = Engine(omni, EngineConfig(num_slots=2, max_answer=8, weights=args.weights))
    strangers = cycle(LETTERS[1:])  # conversations whose very first word is another one
    found = []
    for turns in _bar(fits, "conversations"):
        if turns:
            ask(kept, talk(turns - 1))  # the session's turn before
        length, warm_rows, warm = ask(kept, talk(turns))
        times = [ask(forgetful, talk(turns, next(strangers))) for _ in range(args.rounds)]
        cold_rows, cold = times[0][1], statistics.median(seconds for _, _, seconds in times)
        started = time.perf_counter()
        with torch.inference_mode():
            naive.prefill(omni.prompt_embeds(talk(turns)))
        ceilings.synchronize(omni.device)
        theirs = time.perf_counter() - started
        found.append(
            {
                "turns": turns,
                "positions": length,
                "kept": {"rows": warm_rows, "seconds": warm},
                "forgotten": {"rows": cold_rows, "seconds": cold},
                "naive": {"rows": length, "seconds": theirs},
            }
        )
    return found


def talk(turns: int, start: str = LETTERS[0]) -> list[Utterance]:
    """So many turns, and a question. A conversation is the beginning of any longer one that starts alike."""
    said = []
    for i in range(turns):
        said += [Utterance("user", text=f"{start} {i}: {ASKED}"), Utterance("assistant", text=f"{i}: {ANSWERED}")]
    return [*said, Utterance("user", text=f"{start} {turns}: {ASKED}")]


def ask(one: Engine, conversation: Sequence[Utterance]) -> tuple[int, int, float]:
    """Positions of the prompt, those that were read, and seconds to the first token; the answer is let go."""
    before, started = engine.counts(one)[1], time.perf_counter()
    sequence = one.add("turn", conversation, Sampling(max_new_tokens=8))
    while not sequence.tokens:
        one.step()
    ceilings.synchronize(one.omni.device)
    spent, rows = time.perf_counter() - started, engine.counts(one)[1] - before
    length = sequence.prompt_length
    one.abort("turn")
    one.step()
    return length, rows, spent


# --- how many talk ------------------------------------------------------------------------------------------------


def sessions(loaded: Loaded, naive: Naive, args: argparse.Namespace) -> list[dict[str, Any]]:
    limits, found = ceilings.measure(loaded.omni.device, loaded.omni.dtype), []
    theirs = [each["seconds"] + each["units"] for each in naive_steps(naive, ENDS + 10, 1)]
    one_by_one = statistics.median(theirs)
    for number in _bar(engine.sizes(args.max_sessions), "sessions"):
        batch = engine.measure(loaded, limits, number, ENDS, args.weights)
        if batch.step is None:
            break
        found.append({"sessions": number, "seconds": batch.step, "naive_seconds": number * one_by_one,
                      "calls": batch.calls, "rows": [batch.text_rows, batch.unit_rows]})  # fmt: skip
    return found


# --- told ---------------------------------------------------------------------------------------------------------


def summary(loaded: Loaded, found: dict[str, Any]) -> str:
    answer = found["answer"]
    parts = [
        f"{loaded.name}: {loaded.says}",
        _answer_table(answer),
        f"Ours costs {answer['ours_last_over_first']:.2f}× at the last {ENDS} tokens of what it costs at the first; "
        f"the published path's last token {answer['naive_last_over_first']:.2f}× its first.",
        _history_table(found["history"]),
        _session_table(found["sessions"]),
    ]
    return "\n\n".join(parts)


def _answer_table(answer: dict[str, Any]) -> str:
    theirs = {each["token"]: each for each in answer["naive"] if each["units"] is not None}
    marks = sorted({min(theirs, key=lambda token: abs(token - mark)) for mark in (2, 50, 100, 150, max(theirs))})
    rows = []
    for token in marks:
        near = [each["seconds"] for each in answer["ours"][max(1, token - 6) : token + 5]]
        own, other = answer["ours"][token - 1], theirs[token]
        times = statistics.median(near), other["seconds"] + other["units"]
        rows.append([str(token), report.milliseconds(times[0]), _sum(own), report.milliseconds(times[1]), _sum(other)])
    return report.table(["token", "ours, ms", POSITIONS, "naive, ms", POSITIONS], rows)


def _history_table(history: list[dict[str, Any]]) -> str:
    rows = []
    for each in history:
        parts = [each[who] for who in ("kept", "forgotten", "naive")]
        told = [f"{report.milliseconds(part['seconds'])} · {part['rows']}" for part in parts]
        rows.append([str(each["turns"]), str(each["positions"]), *told])
    names = ["earlier turns", "positions", "first token, ms · positions read", "the same, turns forgotten", "naive"]
    return report.table(names, rows)


def _session_table(sessions: list[dict[str, Any]]) -> str:
    rows = [
        [
            str(each["sessions"]),
            report.milliseconds(each["seconds"]),
            f"{each['calls']:.0f}",
            _sum(each),
            report.milliseconds(each["naive_seconds"]),
        ]
        for each in sessions
    ]
    names = ["sessions", "a token for each, ms", "calls of the LLM", POSITIONS, "naive, one after the other, ms"]
    return report.table(names, rows)


def _sum(each: dict[str, Any]) -> str:
    return "{:.0f} + {:.0f}".format(*each["rows"])


def _bar(some: Any, what: str, total: int | None = None) -> Any:
    return tqdm(some, desc=what, total=total, disable=None)
