"""What streaming costs the vocoder: real-time factor offline, and the price of context by chunk size.

    omni bench vocoder                        # the published shape, random weights, one thread
    omni bench vocoder --dtype bfloat16

work: frames vocoded (before rounding up) per frame of speech; CPU: seconds as a multiple of offline's.
Weights are random and durations therefore set: about 1.6 frames a unit. Times are the process's CPU seconds, best of
`--rounds`, because the machine may be shared. "whole units" counts, without running it, what a planner costs that cuts
between units and, not knowing their durations, must take 21 + 2 of them as context on each side.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import torch

from bench import report
from bench.shapes import PUBLISHED_VOCODER, published_vocoder
from omni.vocoder.code_hifigan import CodeHiFiGAN
from omni.vocoder.render import offline, render
from omni.vocoder.streaming import DURATION_CONTEXT, ChunkPlanner, ChunkReply, context_frames, samples_per_frame

CONTEXT = context_frames(PUBLISHED_VOCODER)
LOOK_AHEAD = CONTEXT + DURATION_CONTEXT  # in units, where a unit may last one frame
SAMPLE_RATE = 16_000  # Hz
Result = TypeVar("Result")
UNITS_PER_TOKEN = 11  # units arrive as the unit decoder emits them: in groups, one per text token


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--units", type=int, default=200, metavar="N", help="of the answer (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="the best one counts (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")


def main(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    about = report.about(threads=1)
    vocoder = published_vocoder(getattr(torch, args.dtype))
    units = torch.randint(1000, (args.units,), generator=torch.Generator().manual_seed(1)).tolist()
    at_once, samples = best_of(args.rounds, lambda: offline(vocoder, units))
    num_frames = len(samples) // samples_per_frame(PUBLISHED_VOCODER)
    whole = {"seconds": len(samples) / SAMPLE_RATE, "frames": num_frames, "cpu": at_once}
    durations = measured_durations(vocoder, units)
    chunks = []
    for size, largest in ((10, 10), (20, 20), (40, 40), (10, 80)):
        cpu, (calls, first, rendered) = best_of(args.rounds, partial(stream, vocoder, units, size, largest))
        work = rendered / num_frames
        entry: dict[str, Any] = {
            "first": size,
            "largest": largest,
            "calls": calls,
            "units": first,
            "work": work,
            "cpu": cpu,
        }
        if size == largest:
            entry["whole_units"] = {"units": size + LOOK_AHEAD, "work": whole_unit_work(durations, size)}
        chunks.append(entry)
    report.save(args.json, {"about": about, "dtype": args.dtype, "offline": whole, "chunks": chunks})
    print(report.heading(about))
    print(summary(args.dtype, whole, chunks))
    return 0


def summary(dtype: str, whole: dict[str, Any], chunks: list[dict[str, Any]]) -> str:
    names = ["Ω", "calls", "units before first audio", "work", "CPU", "RTF", "whole units: before first audio", "work"]
    rows = []
    for each in chunks:
        name = f"{each['first']}" if "whole_units" in each else f"{each['first']} → {each['largest']}"
        cost = [f"{each['work']:.2f}", f"{each['cpu'] / whole['cpu']:.2f}", f"{each['cpu'] / whole['seconds']:.3f}"]
        other = each.get("whole_units")
        cut = [str(other["units"]), f"{other['work']:.2f}"] if other else ["", ""]
        rows.append([name, str(each["calls"]), str(each["units"]), *cost, *cut])
    return (
        f"published shape, random weights, {dtype}; whole answer: {whole['seconds']:.2f} s of speech in "
        f"{whole['cpu']:.2f} s of CPU, RTF {whole['cpu'] / whole['seconds']:.3f}\n\n{report.table(names, rows)}"
    )


def best_of(rounds: int, run: Callable[[], Result]) -> tuple[float, Result]:
    """The least CPU seconds of `rounds` runs after one to warm up."""
    result, times = run(), []
    for _ in range(rounds):
        started = time.process_time()
        result = run()
        times.append(time.process_time() - started)
    return min(times), result


def stream(vocoder: CodeHiFiGAN, units: list[int], size: int, largest: int) -> tuple[int, int, int]:
    """Chunks of `size` units, doubling up to `largest` → calls, units received before first audio, frames vocoded."""
    plan = ChunkPlanner(CONTEXT, first_chunk=size, chunk=largest)
    calls = first = rendered = 0
    waiting = list(units)
    while not plan.done:
        plan.push(waiting[:1] if not first else waiting[:UNITS_PER_TOKEN])
        waiting = waiting[1:] if not first else waiting[UNITS_PER_TOKEN:]
        if not waiting:
            plan.finish()
        while chunk := plan.next():
            (reply,) = render(vocoder, [chunk])
            assert isinstance(reply, ChunkReply)
            left = min(chunk.skip_frames, CONTEXT)
            new = len(reply.pcm) // (2 * samples_per_frame(PUBLISHED_VOCODER))
            rendered += left + new + (0 if chunk.final or not new else CONTEXT)
            calls += 1
            if new and not first:
                first = plan.units_received
            plan.accept(reply)
    return calls, first, rendered


def measured_durations(vocoder: CodeHiFiGAN, units: list[int]) -> list[int]:
    return vocoder.durations(torch.tensor([units]))[0].tolist()


def whole_unit_work(durations: list[int], size: int) -> float:
    """Frames vocoded per frame of speech when every chunk is `size` units and 23 more on either side."""
    starts, n = [0, *accumulate(durations)], len(durations)
    pieces = [(max(0, i - LOOK_AHEAD), min(n, i + size + LOOK_AHEAD)) for i in range(0, n, size)]
    return sum(starts[b] - starts[a] for a, b in pieces) / starts[-1]
