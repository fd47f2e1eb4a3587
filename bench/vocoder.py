"""What streaming costs the vocoder: real-time factor offline, and the price of context by chunk size.

    python -m bench.vocoder                   # the published shape, random weights, one thread
    python -m bench.vocoder --dtype bfloat16

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
from typing import TypeVar

import torch

from omni.vocoder.code_hifigan import CodeHiFiGAN
from omni.vocoder.render import offline, render
from omni.vocoder.streaming import DURATION_CONTEXT, ChunkPlanner, ChunkReply, context_frames, samples_per_frame

PUBLISHED = {
    "upsample_rates": [5, 4, 4, 2, 2],
    "upsample_kernel_sizes": [11, 8, 8, 4, 4],
    "upsample_initial_channel": 512,
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5]] * 3,
    "num_embeddings": 1000,
    "embedding_dim": 128,
    "model_in_dim": 128,
    "dur_predictor_params": {"encoder_embed_dim": 128, "var_pred_hidden_dim": 128, "var_pred_kernel_size": 3},
}
CONTEXT = context_frames(PUBLISHED)
LOOK_AHEAD = CONTEXT + DURATION_CONTEXT  # in units, where a unit may last one frame
SAMPLE_RATE = 16_000  # Hz
Result = TypeVar("Result")
UNITS_PER_TOKEN = 11  # units arrive as the unit decoder emits them: in groups, one per text token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--units", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    vocoder = published_shape(getattr(torch, args.dtype))
    units = torch.randint(1000, (args.units,), generator=torch.Generator().manual_seed(1)).tolist()

    at_once, samples = best_of(args.rounds, lambda: offline(vocoder, units))
    num_frames = len(samples) // samples_per_frame(PUBLISHED)
    seconds = len(samples) / SAMPLE_RATE
    print(f"{args.dtype}: {args.units} units, {num_frames} frames, {seconds:.2f} s of speech")
    print(f"offline: {at_once:.2f} s of CPU, RTF {at_once / seconds:.3f}")
    durations = measured_durations(vocoder, units)
    print("| Ω | calls | units before first audio | work | CPU | RTF | whole units: before first audio | work |")
    print("|---|---|---|---|---|---|---|---|")
    for size, largest in ((10, 10), (20, 20), (40, 40), (10, 80)):
        cpu, (calls, first, rendered) = best_of(args.rounds, partial(stream, vocoder, units, size, largest))
        name, whole = f"{size} → {largest}", "| | |"
        if size == largest:
            name, whole = str(size), f"| {size + LOOK_AHEAD} | {whole_unit_work(durations, size):.2f} |"
        cost = f"{rendered / num_frames:.2f} | {cpu / at_once:.2f} | {cpu / seconds:.3f}"
        print(f"| {name} | {calls} | {first} | {cost} {whole}")


def published_shape(dtype: torch.dtype) -> CodeHiFiGAN:
    torch.manual_seed(0)
    vocoder = CodeHiFiGAN(PUBLISHED).eval().requires_grad_(False)
    vocoder.dur_predictor.proj.bias.fill_(0.7)
    for part in (vocoder.conv_pre, vocoder.ups, vocoder.resblocks, vocoder.conv_post):
        part.to(dtype)
    return vocoder


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
            new = len(reply.pcm) // (2 * samples_per_frame(PUBLISHED))
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


if __name__ == "__main__":
    main()
