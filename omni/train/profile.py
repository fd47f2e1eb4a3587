"""How fast this machine trains at real size, with random weights: tokens/s, FLOP utilisation, memory, hours.

    omni train stage1 --shape 8b --profile --steps 20 --json stage1.json

Utilisation is the FLOP the model needs (shapes.py; what checkpointing computes again is not counted) over what a large
bf16 matrix product reaches in the same run. Weights and data are random: a dense model takes the same time on any.
"""

import argparse
import gc
import json
import resource
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm import tqdm

from omni.train import large
from omni.train.batches import TEMPLATE, RandomBatches
from omni.train.measures import hardware
from omni.train.shapes import SHAPES, Work, stage1_work, stage2_work

SAMPLES = 200_000 * 3  # the paper's data and epochs
PAPER_GPU_HOURS = 4 * 65  # both stages, four L40
WARM_STEPS = 2  # not counted


@dataclass(frozen=True)
class Row:
    """One stage at one input length."""

    stage: str
    shape: str
    input: str
    trained: str
    optimiser: str
    batch: int
    steps: int
    seconds_per_step: float  # median
    tokens_per_second: float  # LLM positions
    samples_per_second: float
    model_tflops: float
    utilisation: float  # of the measured peak
    hardware_utilisation: float  # with what is computed again
    peak_tflops: float
    peak_memory_gb: float
    hours: float  # this stage, 200K samples × 3 epochs, one device


def profile(args: argparse.Namespace) -> int:
    with large.processes() as (rank, ranks, device):
        peak = matmul_peak(device)
        inputs = [args.input] if args.input else ["padded", "true-length"]
        rows = [measure(args, each, device, rank, ranks, peak) for each in inputs]
        if rank == 0:
            where = hardware(str(device), torch.get_num_threads())
            print(table(rows, where, ranks))
            if args.json:
                content = {"hardware": where, "processes": ranks, "rows": [asdict(row) for row in rows]}
                args.json.write_text(json.dumps(content, indent=1))
    return 0


def measure(args: argparse.Namespace, length: str, device: torch.device, rank: int, ranks: int, peak: float) -> Row:
    shape = SHAPES[args.shape]
    steps = args.steps or 20
    checkpointing = not args.no_checkpointing
    model = large.build(args.stage, shape, device, large.DTYPES[args.dtype], args.seed)
    large.choose_trained(model, args.trained, args.rank, checkpointing)
    model = large.shard(model, ranks, device)
    rate = args.rate or large.RATES[args.stage]
    optimiser = large.optimiser_of(args.optimiser, [p for p in model.parameters() if p.requires_grad], rate)
    batches = RandomBatches(shape, args.batch, length == "padded", seed=args.seed * ranks + rank)
    reset_memory(device)
    seconds = []
    for step in tqdm(range(WARM_STEPS + steps), desc=f"{args.stage} {length}", disable=rank > 0 or None):
        batch = batches(step)
        start = time.perf_counter()
        large.take_step(model, optimiser, batch, device, rate)  # reads the loss, so the device has finished
        seconds.append(time.perf_counter() - start)
    memory = peak_memory(device)
    del model, optimiser
    gc.collect()
    median = statistics.median(seconds[WARM_STEPS:])
    prompt = sum(TEMPLATE)
    if args.stage == "stage1":
        work = stage1_work(shape, batches.frames, prompt, batches.answer, args.trained, checkpointing)
    else:
        work = stage2_work(shape, batches.frames, prompt, batches.answer)
    return row_of(args, length, steps, median, batch.num_positions, work, peak, memory, ranks)


def row_of(
    args: argparse.Namespace,
    length: str,
    steps: int,
    seconds: float,
    positions: int,
    work: Work,
    peak: float,
    memory: float,
    ranks: int,
) -> Row:
    samples = args.batch * ranks / seconds
    reached = work.model * samples / ranks
    return Row(
        stage=args.stage,
        shape=args.shape,
        input=length,
        trained=args.trained if args.stage == "stage1" else "unit decoder",
        optimiser=args.optimiser,
        batch=args.batch,
        steps=steps,
        seconds_per_step=seconds,
        tokens_per_second=positions * ranks / seconds,
        samples_per_second=samples,
        model_tflops=reached / 1e12,
        utilisation=reached / peak,
        hardware_utilisation=work.hardware * samples / ranks / peak,
        peak_tflops=peak / 1e12,
        peak_memory_gb=memory / 1e9,
        hours=SAMPLES / samples / 3600,
    )


def matmul_peak(device: torch.device) -> float:
    """FLOP/s of the best of some large bf16 products."""
    size, times = (8192, 20) if device.type == "cuda" else (1024, 3)
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(times):
        synchronise(device)
        start = time.perf_counter()
        a @ b
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> float:
    """Bytes: of the device, or of this process, which on a CPU is since its start."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def table(rows: list[Row], where: str, ranks: int) -> str:
    head: list[tuple[str, Any]] = [
        ("input", lambda row: row.input),
        ("trained", lambda row: row.trained),
        ("tokens/s", lambda row: f"{row.tokens_per_second:,.0f}"),
        ("samples/s", lambda row: f"{row.samples_per_second:.2f}"),
        ("TFLOP/s a device", lambda row: f"{row.model_tflops:.2f}"),
        ("of the measured peak", lambda row: f"{100 * row.utilisation:.1f} %"),
        ("with recomputation", lambda row: f"{100 * row.hardware_utilisation:.1f} %"),
        ("peak memory", lambda row: f"{row.peak_memory_gb:.1f} GB"),
        ("200K × 3 epochs", lambda row: f"{row.hours:,.1f} h"),
    ]
    first = rows[0]
    lines = [
        f"{first.stage}, shape {first.shape}, batch {first.batch}, {first.optimiser}, {first.steps} steps, {ranks} × "
        f"{where}; bf16 matrix product: {first.peak_tflops:.1f} TFLOP/s. Paper: {PAPER_GPU_HOURS} GPU hours for both "
        "stages on L40 (11.4 % of 181 TFLOP/s).",
        "",
        "| " + " | ".join(name for name, _ in head) + " |",
        "|" + " --- |" * len(head),
    ]
    return "\n".join(lines + ["| " + " | ".join(show(row) for _, show in head) + " |" for row in rows])
