"""`omni bench load URL`: conversations with a running cluster, in real time: who waits how long, and who hears a gap.

    omni bench load http://127.0.0.1:8000 --sessions 8
    omni bench load http://127.0.0.1:8000 --rate 6                     # conversations a minute, come what may
    omni bench load http://127.0.0.1:8000 --search --plot load.png
    omni bench load http://127.0.0.1:8000 --transport realtime         # an open microphone, and barge-in by speaking

A person asks a recorded question, which takes as long as it lasts, hears the answer in real time, thinks, and goes on.
First audio counts from the question's end. An underrun is sound that comes after the listener ran out of it. With
--sessions as many people talk at any time: who ends makes room for the next; their first words are spread like a
Poisson process. With --rate conversations arrive as a Poisson process, however many there are already. The objective
is met when the 95th percentile of first audio is at most --objective, with no underrun and no error in any turn;
goodput counts turns that meet it. --search doubles the sessions until it is missed, then halves the gap.
The client is one light process; "late" tells how late its own clock ran, and a lateness near the delays measured says
that the client, not the cluster, was too slow.

With --transport realtime the microphone is always open, and the question is over after --silence-ms of silence: first
audio counts from where the server can first know that, and a second table has it from the last word too. The next
question is what interrupts an answer; how soon that is silent is measured here, at the listener's.
"""

import argparse
import asyncio
import importlib.util
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass, field, fields
from itertools import count
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench import live_transport, plot, questions, report
from bench.conversations import Habits, PlannedTurn, arrivals, conversation
from bench.playback import SAMPLE_RATE, Playback
from bench.transports import Question, Silenced, Speaker, Spoken, Transport, Turns
from omni.audio import wav
from omni.serve.client import Client
from omni.serve.config import API_KEY_VARIABLE
from omni.serve.protocol import AudioDelta, Done, Failed

SPREAD = 6.0  # seconds over which the first conversations begin: about one turn
PATIENCE = 60.0  # seconds without any event after which a listener gives up
DRAIN = 30.0  # seconds for what is under way when the time is up
SILENCED = tuple(each.name for each in fields(Silenced))
TICK = 0.05  # seconds between two looks at the client's own clock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="of the controller; a key is read from $" + API_KEY_VARIABLE)
    parser.add_argument(
        "--transport", choices=["turns", "realtime"], default="turns",
        help="recordings over HTTP, or live conversations over /v1/realtime (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--silence-ms", type=int, default=500, metavar="MS",
        help="after which a live question is over, 100 … 5000 (default: %(default)s)",
    )  # fmt: skip
    how_many = parser.add_mutually_exclusive_group()
    how_many.add_argument("--sessions", type=int, metavar="N", help="people who talk at any time (default: 8)")
    how_many.add_argument("--rate", type=float, metavar="R", help="conversations that begin per minute")
    how_many.add_argument("--search", action="store_true", help="the most sessions that meet the objective")
    parser.add_argument("--max-sessions", type=int, default=512, metavar="N", help="of a search (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, help="measured, after the warm-up (default: 60; 30 for each step of a search)"
    )
    parser.add_argument("--warm-up", type=float, default=10.0, metavar="S", help="default: %(default)s")
    goal = parser.add_argument_group("the objective")
    goal.add_argument(
        "--objective", type=float, default=1.0, metavar="S", help="95 %% of first audio by then; a GPU's is 0.3 "
        "(default: %(default)s)",
    )  # fmt: skip
    people = parser.add_argument_group("the people")
    people.add_argument("--turns", type=float, default=Habits.mean_turns, help="a conversation (default: %(default)s)")
    people.add_argument(
        "--think", type=float, default=Habits.mean_think, metavar="S", help="between turns (default: %(default)s)"
    )
    people.add_argument(
        "--barge-in", type=float, default=Habits.interrupting, metavar="SHARE",
        help="of answers that are interrupted (default: %(default)s)",
    )  # fmt: skip
    people.add_argument(
        "--question-seconds",
        type=float,
        metavar="S",
        help="of every question (default: the recordings' own, 1.5 to 4.4)",
    )
    people.add_argument("--max-new-tokens", type=int, metavar="N", help="of an answer (default: the cluster's)")
    people.add_argument("--seed", type=int, default=0, help="other people (default: %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw what happened")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")


def main(args: argparse.Namespace) -> int:
    if problem := _problem(args):
        print(f"omni bench load: {problem}", file=sys.stderr)
        return 2
    key = os.environ.get(API_KEY_VARIABLE)
    try:
        with Client(args.url, api_key=key) as client:
            cluster = client.get("/v1/cluster")
    except Exception as exc:
        print(f"omni bench load: no controller answers at {args.url}: {exc}", file=sys.stderr)
        return 1
    about = report.about()
    options = {"max_new_tokens": args.max_new_tokens, "seed": args.seed}
    asked = load_questions(args.question_seconds)
    transport: Callable[[], Transport] = lambda: Turns(args.url, key, options)  # noqa: E731
    if args.transport == "realtime":
        heard = live_transport.hearable(asked, args.silence_ms)
        if not heard:
            print("omni bench load: a server hears none of the recordings as one question.", file=sys.stderr)
            return 2
        asked = list(heard)
        transport = lambda: live_transport.Live(args.url, key, options, heard, args.silence_ms)  # noqa: E731
    loads = asyncio.run(run(args, transport, asked))
    found = {
        "about": about,
        "cluster": _size(cluster),
        "transport": args.transport,
        "questions": len(asked),
        "objective": args.objective,
        "loads": loads,
    }
    if args.search:
        found["largest"] = max((each["sessions"] for each in loads if each["met"]), default=0)
    report.save(args.json, found)
    print(report.heading(about))
    print(summary(found))
    if args.plot:
        plot.load(found, args.plot)
    return 0


def _problem(args: argparse.Namespace) -> str | None:
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        return plot.MISSING
    for name, least in (("sessions", 1), ("max_sessions", 1), ("turns", 1), ("max_new_tokens", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            return f"--{name.replace('_', '-')} is {value}; it is at least {least}."
    for name in ("rate", "seconds", "objective", "question_seconds"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            return f"--{name.replace('_', '-')} is {value}; it is more than 0."
    if not 100 <= args.silence_ms <= 5000:
        return f"--silence-ms is {args.silence_ms}; it is 100 … 5000."
    if not 0 <= args.barge_in <= 1 or args.think < 0 or args.warm_up < 0:
        return "--barge-in is 0 … 1; --think and --warm-up are not negative."
    return None


def load_questions(seconds: float | None) -> list[Question]:
    """Recordings as WAV files: cut or repeated to `seconds`, or as they are."""
    samples = questions.recordings() if seconds is None else questions.load(20, seconds)
    said = [wav.to_pcm16(each) for each in samples]
    return [Question(wav.wav_bytes(pcm16), len(pcm16) / 2 / SAMPLE_RATE, pcm16) for pcm16 in said]


def _size(cluster: dict[str, Any]) -> dict[str, int]:
    kinds = [each["kind"] for each in cluster.get("workers", [])]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


# --- one load -----------------------------------------------------------------------------------------------------


@dataclass
class TurnResult:
    """One question and what became of it; times in seconds since the load began."""

    asked: float  # the question's end, as soon as it can be known
    first_audio: float | None = None  # seconds after it
    after_speech: float | None = None  # seconds after the last word, of a live question
    silenced: Silenced | None = None  # the answer before it, which it interrupted
    seconds: float = 0.0  # of sound
    gaps: list[float] = field(default_factory=list)
    interrupted: bool = False
    finished: bool = False
    error: str | None = None

    def good(self, objective: float) -> bool:
        waited = self.first_audio is not None and self.first_audio <= objective
        return waited and not self.gaps and self.error is None


@dataclass
class Load:
    """People talking to a cluster for a while."""

    transport: Callable[[], Transport]
    asked: Sequence[Question]
    habits: Habits
    sessions: int | None
    rate: float | None  # conversations a second
    warm_up: float
    seconds: float
    seed: int = 0
    turns: list[TurnResult] = field(default_factory=list)
    late: list[float] = field(default_factory=list)  # seconds by which the client's own clock ran late
    num_live: int = 0
    most_live: int = 0
    live_seconds: float = 0.0  # summed over conversations, in the measured time

    async def run(self, bar: tqdm) -> None:
        self.loop = asyncio.get_running_loop()
        self.start = self.loop.time()
        self.measure_from = self.start + self.warm_up
        self.measure_until = self.measure_from + self.seconds
        self.numbers = count(1_000_000 * self.seed)
        watching = asyncio.create_task(self._watch(bar))
        try:
            async with self.transport() as transport:
                await self._people(transport)
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    async def _people(self, transport: Transport) -> None:
        tasks: set[asyncio.Task] = set()
        try:
            await self._bring(transport, tasks)
            if tasks:
                await asyncio.wait(tasks, timeout=max(0.0, self.measure_until + DRAIN - self.loop.time()))
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for problem in ended:
            if isinstance(problem, Exception):
                raise problem

    async def _bring(self, transport: Transport, tasks: set[asyncio.Task]) -> None:
        """Until the time is up, or with a fixed number, until all of them have begun."""
        spread = min(SPREAD, self.warm_up or self.seconds / 10)
        rate = self.rate if self.rate is not None else (self.sessions or 0) / spread
        for number, at in enumerate(arrivals(rate, self.seed)):
            if self.start + at >= self.measure_until or number == self.sessions:
                return
            await asyncio.sleep(max(0.0, self.start + at - self.loop.time()))
            tasks.add(asyncio.create_task(self._seat(transport)))

    async def _seat(self, transport: Transport) -> None:
        """One conversation, or with a fixed number of sessions one after the other."""
        while self.loop.time() < self.measure_until:
            await self._converse(transport)
            if self.sessions is None:
                return

    async def _converse(self, transport: Transport) -> None:
        speaker, began, interrupting = transport.speaker(), self.loop.time(), False
        self.num_live += 1
        self.most_live = max(self.most_live, self.num_live)
        try:
            for turn in conversation(self.habits, next(self.numbers), len(self.asked)):
                await asyncio.sleep(0.0 if interrupting else turn.think)
                if self.loop.time() >= self.measure_until:
                    return
                interrupting = (await self._turn(speaker, turn)).interrupted and speaker.talks_over
        finally:
            self.num_live -= 1
            within = min(self.loop.time(), self.measure_until) - max(began, self.measure_from)
            self.live_seconds += max(0.0, within)
            await speaker.close()

    async def _turn(self, speaker: Speaker, turn: PlannedTurn) -> TurnResult:
        """Delays count from when the question should have ended: a client that is late hides nothing."""
        question, playback = self.asked[turn.question], Playback()
        result = TurnResult(asked=self.loop.time() + question.seconds - self.start)
        try:
            async with aclosing(speaker.ask(question)) as events:
                await self._listen(events, playback, result, turn.interrupt_after)
        except TimeoutError:
            result.error = "silence"
        except StopAsyncIteration:
            result.error = "no_end"
        except asyncio.CancelledError:
            result.error = "unfinished"
            raise
        finally:
            if playback.started is not None:
                result.first_audio = playback.started - self.start - result.asked
            if result.after_speech is not None:
                heard = result.first_audio
                result.after_speech = None if heard is None else result.after_speech + heard
            result.seconds, result.gaps = playback.seconds, playback.gaps
            self.turns.append(result)
        if result.finished and not result.interrupted:  # the rest is heard
            await asyncio.sleep(max(0.0, playback.ends - self.loop.time()))
        return result

    async def _listen(self, events: Any, playback: Playback, result: TurnResult, interrupt_after: float | None) -> None:
        """To the answer's end, or to where this person speaks again."""
        while True:
            enough = None
            if interrupt_after is not None and playback.started is not None:
                enough = playback.started + interrupt_after
            wait = PATIENCE if enough is None else min(PATIENCE, max(0.0, enough - self.loop.time()))
            try:
                event = await asyncio.wait_for(anext(events), wait)
            except TimeoutError:
                if enough is None or self.loop.time() < enough:
                    raise
                result.interrupted = True
                return
            match event:
                case Spoken(ended=ended, committed=committed):
                    result.asked, result.after_speech = committed - self.start, committed - ended
                case Silenced():
                    result.silenced = event
                case AudioDelta():
                    playback.receive(self.loop.time(), len(event.pcm16) // 2)
                case Done():
                    result.finished = True
                    break
                case Failed():
                    result.error = event.code
                    break
        if interrupt_after is not None and result.finished and playback.started is not None:
            rest = playback.started + interrupt_after
            if rest < playback.ends:  # all has arrived, and is cut off while it plays
                result.interrupted = True
                await asyncio.sleep(max(0.0, rest - self.loop.time()))

    async def _watch(self, bar: tqdm) -> None:
        """Move the bar, and see how late this process itself is."""
        shown = self.start
        while True:
            expected = self.loop.time() + TICK
            await asyncio.sleep(TICK)
            now = self.loop.time()
            if self.measure_from <= now < self.measure_until:
                self.late.append(now - expected)
            if now - shown >= 0.5:
                bar.update(min(now, self.measure_until) - min(shown, self.measure_until))
                bar.set_postfix_str(f"{self.num_live} live, {len(self.turns)} turns")
                shown = now

    def measured(self) -> list[TurnResult]:
        """Turns whose question ended in the measured time."""
        low, high = self.warm_up, self.warm_up + self.seconds
        return [each for each in self.turns if low <= each.asked < high]


def judge(load: Load, objective: float) -> dict[str, Any]:
    """What the turns of a load add up to."""
    turns = load.measured()
    firsts = [each.first_audio for each in turns if each.first_audio is not None]
    gaps = [gap for each in turns for gap in each.gaps]
    silenced = [each.silenced for each in turns if each.silenced is not None]
    errors: dict[str, int] = {}
    for each in turns:
        if each.error is not None:
            errors[each.error] = errors.get(each.error, 0) + 1
    p95 = report.quantile(firsts, 0.95)
    return {
        "sessions": load.sessions,
        "rate": load.rate,
        "seconds": load.seconds,
        "live": load.live_seconds / load.seconds,
        "most_live": load.most_live,
        "turns": len(turns),
        "turns_per_second": len(turns) / load.seconds,
        "first_audio": _quantiles(firsts),
        "first_audio_intervals": {name: _interval(firsts, q) for name, q in (("p50", 0.5), ("p95", 0.95))},
        "after_speech": _quantiles([each.after_speech for each in turns if each.after_speech is not None]),
        "silenced": {"n": len(silenced)}
        | {name: _quantiles([getattr(each, name) for each in silenced]) for name in SILENCED},
        "underruns": len(gaps),
        "longest_gap": max(gaps, default=0.0),
        "errors": errors,
        "silent": sum(each.first_audio is None and each.error is None for each in turns),
        "interrupted": sum(each.interrupted for each in turns),
        "goodput": sum(each.good(objective) for each in turns) / load.seconds,
        "met": bool(p95 is not None and p95 <= objective and not gaps and not errors),
        "late": {"p99": report.quantile(load.late, 0.99), "max": max(load.late, default=0.0)},
        "each": [asdict(each) for each in turns],
    }


def _quantiles(values: Sequence[float]) -> dict[str, float | None]:
    return {name: report.quantile(values, q) for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}


def _interval(values: Sequence[float], q: float) -> list[float] | None:
    """The bootstrap's 95 % round a quantile."""
    if not values:
        return None
    found = report.interval(values, lambda some: report.quantile(some, q) or 0.0)
    return [found["low"], found["high"]]


# --- several ------------------------------------------------------------------------------------------------------


async def run(
    args: argparse.Namespace, transport: Callable[[], Transport], asked: Sequence[Question]
) -> list[dict[str, Any]]:
    habits = Habits(args.turns, args.think, args.barge_in)
    seconds = args.seconds or (30.0 if args.search else 60.0)

    async def one(sessions: int | None) -> dict[str, Any]:
        rate = None if args.rate is None else args.rate / 60
        load = Load(transport, asked, habits, sessions, rate, args.warm_up, seconds, args.seed)
        what = f"{sessions} sessions" if sessions else f"{args.rate:g} conversations a minute"
        with tqdm(total=args.warm_up + seconds, desc=what, unit="s", disable=None, bar_format=_BAR) as bar:
            await load.run(bar)
        return judge(load, args.objective)

    if args.search:
        return await search(one, args.max_sessions)
    return [await one(None if args.rate else args.sessions or 8)]


_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} s{postfix}"


async def search(one: Callable[[int], Awaitable[dict[str, Any]]], most: int) -> list[dict[str, Any]]:
    """1, 2, 4 … sessions until the objective is missed, then between: to one session, or 5 %."""
    found: list[dict[str, Any]] = []
    met, missed = 0, most + 1
    while missed - met > max(1, met // 20):
        sessions = min(max(1, 2 * met), most) if missed > most else (met + missed) // 2
        found.append(await one(sessions))
        if found[-1]["met"]:
            met = sessions
        else:
            missed = sessions
    return found


def summary(found: dict[str, Any]) -> str:
    names = ["load", "live", "turns", "p50", "p95", "p99, ms", "underruns", "errors", "silent", "good turns/s", "met"]
    rows = []
    for each in found["loads"]:
        load = f"{each['sessions']} sessions" if each["sessions"] else f"{60 * each['rate']:g} a minute"
        delays = [report.milliseconds(each["first_audio"][name]) for name in ("p50", "p95", "p99")]
        underruns = f"{each['underruns']}" + (f" (≤ {each['longest_gap']:.2f} s)" if each["underruns"] else "")
        errors = ", ".join(f"{number} {code}" for code, number in each["errors"].items()) or "0"
        rows.append(
            [load, f"{each['live']:.1f}", str(each["turns"]), *delays, underruns, errors, str(each["silent"]),
             f"{each['goodput']:.2f}", "yes" if each["met"] else "no"]
        )  # fmt: skip
    size = ", ".join(f"{number} {kind} workers" for kind, number in found["cluster"].items())
    late = max(each["late"]["max"] for each in found["loads"])
    lines = [f"{size}; objective: 95 % of first audio within {1000 * found['objective']:.0f} ms, no underrun, no error"]
    if "largest" in found:
        lines.append(f"The most live sessions that meet it: {found['largest']}.")
    lines += ["", report.table(names, rows), ""]
    if found.get("transport") == "realtime":
        lines += [_live_summary(found["loads"]), ""]
    lines += [f"The client's own clock ran at most {1000 * late:.0f} ms late."]
    return "\n".join(lines)


def _live_summary(loads: Sequence[dict[str, Any]]) -> str:
    """Of live conversations: the wait as the speaker feels it, and how soon an answer is silent."""
    names = ["live, ms", "first audio after the last word, p50", "p95", "after its known end, p50", "p95"]
    names += ["answers talked over", "silent after the first sample, p50", "after it can be known, p50", "p95"]
    names += ["sound after the server's word, p95"]
    rows = []
    for each in loads:
        load = f"{each['sessions']} sessions" if each["sessions"] else f"{60 * each['rate']:g} a minute"
        waits = [each[since][q] for since in ("after_speech", "first_audio") for q in ("p50", "p95")]
        silent, told = each["silenced"], []
        for since, q in (("from_speech", "p50"), ("from_onset", "p50"), ("from_onset", "p95"), ("from_event", "p95")):
            told.append(silent[since][q])
        times = [report.milliseconds(value) for value in (*waits, *told)]
        rows.append([load, *times[:4], str(silent["n"]), *times[4:]])
    return report.table(names, rows)
