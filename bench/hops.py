"""`omni bench hops`: what it costs to go from one process of a cluster to the next, with nothing computed behind it.

    omni bench hops                       # starts Ray and one worker of each kind, asks 100 questions, ends it all
    omni bench hops --sessions 8          # eight at once
    omni bench hops --sessions 16 --model-workers 2        # and how they spread

The workers are those that serve, under Ray Serve as `omni up` starts them, with the same messages; but their model
gives made-up tokens at a steady pace and their vocoder silence, both at once. The turns and the cluster's client are
the controller's own, in this process.

    question    from the controller to the model worker's engine, with its speech
    units       from the engine to the controller: the tokens of a step, their text and units
    chunk       from the controller to the vocoder worker's thread
    sound       from there back to the controller, as PCM
    first two   of an answer's first chunk: from the last units it waited for, out of the engine, to its sound in the
                controller. That is units + chunk + sound, and what the turn does between; the goal is 10 ms.
"""

import argparse
import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench import hollow, report
from omni.audio.wav import SAMPLE_RATE
from omni.serve import ray_node
from omni.serve.cluster import Cluster, Kind
from omni.serve.config import ServeConfig
from omni.serve.protocol import Failed, Message, ReadRequest, Sampling, Tokens, TurnRequest
from omni.serve.turn import Turn
from omni.vocoder.streaming import Chunk, ChunkReply

GOAL = 0.010  # seconds, of the first chunk's two hops on an idle machine with two cores
HOPS = {
    "question": "question: controller → model worker",
    "units": "units: model worker → controller",
    "chunk": "chunk: controller → vocoder worker",
    "sound": "sound: vocoder worker → controller",
    "first_two": "the first chunk's two hops together",
}
SETTINGS = ("turns", "sessions", "model_workers", "slots", "tokens", "step", "question_seconds")
WARM_UP = 5  # turns that are not counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--turns", type=int, default=100, metavar="N", help="questions asked (default: %(default)s)")
    parser.add_argument("--sessions", type=int, default=1, metavar="N", help="at once (default: %(default)s)")
    parser.add_argument(
        "--model-workers", type=int, default=1, metavar="N", help="to spread them over (default: %(default)s)"
    )
    parser.add_argument("--slots", type=int, default=8, metavar="N", help="of each of them (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=20, metavar="N", help="of an answer (default: %(default)s)")
    parser.add_argument(
        "--step", type=float, default=0.03, metavar="S", help="between two tokens of an answer (default: %(default)s)"
    )
    parser.add_argument(
        "--question-seconds", type=float, default=4.0, metavar="S", help="of speech (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")


def main(args: argparse.Namespace) -> int:
    for name in ("turns", "sessions", "model_workers", "slots", "tokens"):
        if (value := getattr(args, name)) < 1:
            print(f"omni bench hops: --{name.replace('_', '-')} is {value}; it is at least 1.", file=sys.stderr)
            return 2
    if args.step < 0 or not 0 < args.question_seconds <= 30:
        print("omni bench hops: --step is not negative, and a question 0 … 30 s long.", file=sys.stderr)
        return 2
    about = report.about()
    config = hollow.make_config(args.model_workers, args.slots)
    try:
        with hollow.running(config, args.step) as cluster:
            watched = asyncio.run(measure(cluster, config, args))
    except ray_node.NodeFailed as exc:
        print(f"omni bench hops: {exc}", file=sys.stderr)
        return 1
    found = {
        "about": about,
        "settings": {name: getattr(args, name) for name in SETTINGS},
        "goal": GOAL,
        "hops": {name: describe(watched.hops[name]) for name in HOPS},
        "seconds": watched.seconds,
        "workers": {name: asdict(each) for name, each in watched.workers.items()},
    }
    report.save(args.json, found)
    print(report.heading(about))
    print(summary(found))
    return 0


# --- measuring ----------------------------------------------------------------------------------------------------


@dataclass
class Worker:
    """What one model worker did."""

    turns: int = 0
    most_at_once: int = 0  # answers that got a token in one step


@dataclass
class Watched:
    """A cluster whose every message is timed."""

    cluster: Cluster
    seconds: float = 0.0
    workers: dict[str, Worker] = field(default_factory=lambda: defaultdict(Worker))
    hops: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in HOPS})
    _left: dict[str, float] = field(default_factory=dict)  # turn → when its latest units left the engine

    async def generate(self, request: TurnRequest) -> AsyncIterator[Tokens]:
        asked, name = time.monotonic(), ""
        try:
            async with aclosing(self.cluster.generate(request)) as stream:  # type: ignore[type-var]
                async for tokens in stream:
                    now, name = time.monotonic(), tokens.worker or name
                    if tokens.token_ids:
                        worker = self.workers[name]
                        worker.most_at_once = max(worker.most_at_once, int(tokens.timings["at_once"]))
                        if request.turn_id not in self._left:
                            worker.turns += 1
                            self.hops["question"].append(tokens.timings["arrived"] - asked)
                        self._left[request.turn_id] = tokens.timings["left"]
                        self.hops["units"].append(now - tokens.timings["left"])
                    yield tokens
        finally:
            self._left.pop(request.turn_id, None)

    async def read(self, request: ReadRequest) -> str:
        return await self.cluster.read(request)

    async def vocode(self, turn_id: str, epoch: int, chunk: Chunk) -> ChunkReply:
        waited_for = self._left.get(turn_id)
        asked = time.monotonic()
        reply = await self.cluster.vocode(turn_id, epoch, chunk)
        now, made = time.monotonic(), hollow.stamp(reply)
        if made is not None:
            self.hops["chunk"].append(made - asked)
            self.hops["sound"].append(now - made)
            if chunk.first and chunk.skip_frames == 0 and waited_for is not None:
                self.hops["first_two"].append(now - waited_for)
        return reply

    def suspect(self, kind: Kind, turn_id: str) -> bool:
        return self.cluster.suspect(kind, turn_id)

    async def describe(self) -> dict[str, Any]:
        return await self.cluster.describe()

    def ready(self) -> bool:
        return self.cluster.ready()


async def measure(cluster: Cluster, config: ServeConfig, args: argparse.Namespace) -> Watched:
    """Every hop of every turn; `args.sessions` turns at any time."""
    question = Message("user", pcm16=bytes(2 * int(SAMPLE_RATE * args.question_seconds)))
    sampling = Sampling(max_new_tokens=args.tokens)

    async def ask(watched: Watched) -> None:
        async for event in Turn(watched, config, [question], sampling).run():
            if isinstance(event, Failed):
                raise RuntimeError(f"A turn failed: {event.message}")

    async def seat(watched: Watched, turns: Iterator[int]) -> None:
        for _ in turns:
            await ask(watched)

    await seat(Watched(cluster), iter(range(WARM_UP)))
    watched, started = Watched(cluster), time.monotonic()
    with tqdm(range(args.turns), desc="turns", disable=None) as bar:
        turns = iter(bar)
        async with asyncio.TaskGroup() as seats:
            for _ in range(args.sessions):
                seats.create_task(seat(watched, turns))
    watched.seconds = time.monotonic() - started
    return watched


# --- told ---------------------------------------------------------------------------------------------------------


def describe(seconds: list[float]) -> dict[str, Any]:
    quantiles = {name: report.quantile(seconds, q) for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}
    return {"n": len(seconds), "least": min(seconds, default=None), **quantiles}


def summary(found: dict[str, Any]) -> str:
    rows = [
        [HOPS[name], str(each["n"]), *(report.milliseconds(each[which]) for which in ("least", "p50", "p95", "p99"))]
        for name, each in found["hops"].items()
    ]
    own, workers = found["settings"], sorted(found["workers"].values(), key=lambda each: -each["turns"])
    met = "met" if found["hops"]["first_two"]["p50"] <= found["goal"] else "missed"
    return (
        f"{own['sessions']} at once, {own['turns']} turns of {own['tokens']} tokens, one each {1000 * own['step']:g} "
        f"ms; questions of {own['question_seconds']:g} s; {own['slots']} slots in each model worker\n\n"
        + report.table(["hop", "times", "least, ms", "p50", "p95", "p99"], rows)
        + f"\n\nGoal, on an idle machine with two cores: {1000 * found['goal']:.0f} ms for the last line; p50: {met}.\n"
        f"{own['turns'] / found['seconds']:.1f} turns a second; "
        + ", ".join(f"{each['turns']} at a worker that had {each['most_at_once']} at once" for each in workers)
        + "."
    )
