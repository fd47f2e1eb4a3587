"""`omni bench engine`: tokens a second, step time and memory by batch, against the hardware's own limit.

    omni bench engine                                        # the mini checkpoint, 1 … 16 rows
    omni bench engine --shape 8b --device cuda --max-batch 256

All rows run at the same time, with a written prompt each, and none ends. A step gives every row one token and its
units. The hardware line is measured in the same run: the time in which the step's weights, keys and values could be
copied, or its products be made, whichever is longer. "of bandwidth" is bytes needed over bytes that could be copied
in that time; "of the line" is the line's time over the step's. Counted with each step: forward calls and positions.
"""

import argparse
import gc
import math
import resource
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench import ceilings, report
from bench.ceilings import Ceilings
from bench.shapes import Loaded
from bench.turn import add_model_arguments, device_name, load_model
from bench.work import StepWork, decode_step
from omni.engine.engine import Engine, EngineConfig
from omni.engine.scheduler import SchedulerConfig
from omni.engine.sequence import OutOfMemory, State
from omni.model.prompt import Utterance
from omni.model.sampling import Sampling
from omni.vocoder.streaming import seconds_per_unit

WARM_UP = 3  # steps
PROMPT = "Tell me, please, what you know about the weather, the sea, the mountains and the people of the north. "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--max-batch", type=int, metavar="B", help="default: 16 on a CPU, 256 on a GPU")
    parser.add_argument("--steps", type=int, default=30, metavar="N", help="measured per batch (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")


def main(args: argparse.Namespace) -> int:
    if args.steps < 1 or (args.max_batch is not None and args.max_batch < 1):
        print("omni bench engine: at least one step, and at least one row.")
        return 2
    loaded = load_model(args)
    about = report.about(device_name(args.device), args.threads)
    dtype = torch.bfloat16 if args.weights != "float" else loaded.omni.dtype
    limits = ceilings.measure(loaded.omni.device, dtype)
    batches = [
        measure(loaded, limits, batch, args.steps, args.weights)
        for batch in tqdm(sizes(args.max_batch or (16 if args.device == "cpu" else 256)), desc="batch", disable=None)
    ]
    again = ceilings.measure(loaded.omni.device, dtype)  # a machine that others use gives less at times
    limits = Ceilings(max(limits.bandwidth, again.bandwidth), max(limits.products, again.products))
    found = {
        "about": about,
        "shape": loaded.name,
        "says": loaded.says,
        "dtype": args.dtype,
        "weights": args.weights,
        "ceilings": {"copy_bytes_per_second": limits.bandwidth, "flops_per_second": limits.products},
        "batches": [judge(each, limits) for each in batches],
    }
    report.save(args.json, found)
    print(report.heading(about))
    print(summary(loaded, found))
    return 0


def sizes(largest: int) -> list[int]:
    """1, 2, 4 … and the largest."""
    powers = [2**i for i in range(largest.bit_length()) if 2**i <= largest]
    return powers if powers[-1] == largest else [*powers, largest]


@dataclass(frozen=True)
class Batch:
    """What steps of so many rows took and did; None where they did not fit into memory."""

    rows: int
    step: float | None = None  # seconds, the median
    steps: tuple[float, ...] = ()
    tokens: int = 0  # all of them
    context: float = 0.0  # positions behind a row, on average
    work: StepWork | None = None
    calls: float = 0.0  # forward calls of the LLM in a step
    text_rows: float = 0.0  # positions through it
    unit_rows: float = 0.0
    kept_bytes: int = 0  # keys and values of all slots
    memory_bytes: int = 0  # the process's, or on a GPU the most that was allocated


def measure(loaded: Loaded, limits: Ceilings, rows: int, steps: int, weights: str = "float") -> Batch:
    omni = loaded.omni
    gc.collect()
    if omni.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(omni.device)
    try:
        engine = filled(loaded, rows, steps, weights)
    except OutOfMemory:
        return Batch(rows)
    sequences = list(engine.scheduler.admitted)
    before = counts(engine)
    times, tokens = run(engine, steps)
    calls, text_rows, unit_rows = (after - then for after, then in zip(counts(engine), before, strict=True))
    context = statistics.mean(each.prompt_length for each in sequences) + WARM_UP + steps / 2
    number_bytes = engine.runner.slots.k.element_size()
    weight_bytes = 1 if weights != "float" else omni.llm.norm.weight.element_size()
    kept = [engine.runner.slots, engine.runner.speech.tokens, engine.runner.speech.positions]
    return Batch(
        rows,
        statistics.median(times),
        tuple(times),
        tokens,
        context,
        decode_step(omni, rows, context, WARM_UP + steps / 2, weight_bytes, number_bytes),
        calls / steps,
        text_rows / steps,
        unit_rows / steps,
        sum(slots.k.nbytes + slots.v.nbytes for slots in kept),
        memory(omni.device),
    )


def filled(loaded: Loaded, rows: int, steps: int, weights: str) -> Engine:
    """An engine all of whose slots give tokens, and go on doing so."""
    omni, pace = loaded.omni, seconds_per_unit(loaded.vocoder.config)
    omni.config = replace(omni.config, eos_token_ids=())
    limit = 1 + WARM_UP + steps + 1  # a GPU's last step is read one late
    conversations = [[Utterance("user", text=f"Number {i}. {3 * PROMPT}")] for i in range(rows)]
    longest = max(len(omni.prompt(each)) for each in conversations)
    config = EngineConfig(rows, max_tokens=longest + limit, max_answer=limit, weights=weights)
    # All prompts are read at once, and nobody yields to anybody: what a full step costs is the question.
    scheduling = SchedulerConfig(rows, rows, prefill_alone=rows * longest, far_ahead=math.inf, seconds_per_unit=pace)
    engine = Engine(omni, config, scheduling)
    for i, conversation in enumerate(conversations):
        engine.add(f"row {i}", conversation, Sampling(max_new_tokens=limit))
    for _ in range(1 + WARM_UP):
        engine.step()
    assert all(each.state is State.RUNNING for each in engine.scheduler.admitted), "one step reads every prompt"
    return engine


def run(engine: Engine, steps: int) -> tuple[list[float], int]:
    """Seconds of each step, and the tokens of all."""
    device, times, tokens = engine.omni.device, [], 0
    for _ in range(steps):
        started = time.perf_counter()
        tokens += sum(len(output.token_ids) for output in engine.step())
        ceilings.synchronize(device)
        times.append(time.perf_counter() - started)
    return times, tokens


def counts(engine: Engine) -> tuple[int, int, int]:
    text, speech = engine.runner.text, engine.runner.speech.rest
    return text.calls, text.rows, 0 if speech is None else speech.rows


def memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def judge(batch: Batch, limits: Ceilings) -> dict[str, Any]:
    if batch.step is None or batch.work is None:
        return {"rows": batch.rows, "out_of_memory": True}
    line = limits.seconds(batch.work.num_bytes, batch.work.flops)
    return {
        "rows": batch.rows,
        "step": batch.step,
        "step_p95": report.quantile(batch.steps, 0.95),
        "tokens_per_second": batch.tokens / sum(batch.steps),
        "context": batch.context,
        "bytes": batch.work.num_bytes,
        "flops": batch.work.flops,
        "line": line,
        "bound": "bandwidth" if line == batch.work.num_bytes / limits.bandwidth else "products",
        "of_bandwidth": batch.work.num_bytes / limits.bandwidth / batch.step,
        "of_products": batch.work.flops / limits.products / batch.step,
        "of_line": line / batch.step,
        "calls_per_step": batch.calls,
        "text_rows_per_step": batch.text_rows,
        "unit_rows_per_step": batch.unit_rows,
        "kept_bytes": batch.kept_bytes,
        "memory_bytes": batch.memory_bytes,
    }


def summary(loaded: Loaded, found: dict[str, Any]) -> str:
    names = ["rows", "tokens/s", "step, ms", "p95, ms", "line, ms", "bound by", "of the line", "of bandwidth",
             "of products", "keys and values, MB", "memory, GB"]  # fmt: skip
    rows = []
    for each in found["batches"]:
        if each.get("out_of_memory"):
            rows.append([str(each["rows"]), "out of memory", *[""] * (len(names) - 2)])
            continue
        shares = [f"{100 * each[name]:.0f} %" for name in ("of_line", "of_bandwidth", "of_products")]
        times = [report.milliseconds(each[name]) for name in ("step", "step_p95", "line")]
        sizes = [f"{each['kept_bytes'] / 1e6:,.0f}", f"{each['memory_bytes'] / 1e9:.1f}"]
        rows.append([f"{each['rows']}", f"{each['tokens_per_second']:.1f}", *times, each["bound"], *shares, *sizes])
    limits = found["ceilings"]
    return (
        f"{loaded.name}: {loaded.says}; {found['dtype']}, {found['weights']} weights; copying "
        f"{limits['copy_bytes_per_second'] / 1e9:,.1f} GB/s read plus written, products "
        f"{limits['flops_per_second'] / 1e9:,.0f} GFLOP/s\n\n{report.table(names, rows)}"
    )
