"""`omni bench load`: by a clock that jumps against a scripted cluster, and over HTTP against the fake one."""

import argparse
import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from itertools import count

import pytest
from serve.fake_cluster import FakeCluster, config, lost_worker, over_tcp, question, until
from serve.jumping_clock import run
from tqdm import tqdm

from bench import command, live_transport, load, questions, report
from bench.conversations import Habits
from bench.playback import SAMPLE_RATE
from bench.transports import Question, Turns
from omni.audio.wav import to_pcm16
from omni.serve.controller import make_app
from omni.serve.protocol import AudioDelta, Done, Event, Failed, Tokens, TurnRequest

QUESTIONS = [Question(b"", 2.0)]
PATIENT = Habits(mean_turns=4.0, mean_think=1.0, interrupting=0.0)


class Script:
    """A cluster that answers `delay` seconds after a question, a second of sound every `pace` seconds, `pieces` times.

    `places` people are served like that; with more, everybody waits a second longer.
    """

    def __init__(self, delay=0.2, pace=0.5, pieces=4, places=1000, failure: str | None = None, hang=False) -> None:
        self.delay, self.pace, self.pieces, self.places = delay, pace, pieces, places
        self.failure, self.hang = failure, hang
        self.open = self.asked = self.left = 0
        self.talks_over = False

    async def __aenter__(self) -> "Script":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def speaker(self) -> "Script":
        self.open += 1
        return self

    async def close(self) -> None:
        self.open -= 1

    async def ask(self, question: Question) -> AsyncGenerator[Event]:
        await asyncio.sleep(question.seconds)
        self.asked += 1
        ended = False
        try:
            await asyncio.sleep(self.delay + (1.0 if self.open > self.places else 0.0))
            if self.hang:
                await asyncio.sleep(1e6)
            if self.failure:
                ended = True
                yield Failed(self.failure, "", 503)
                return
            for i in range(self.pieces):
                yield AudioDelta(bytes(2 * SAMPLE_RATE), i * SAMPLE_RATE)
                await asyncio.sleep(self.pace)
            ended = True
            yield Done("", "stop", 1, 1, 1)
        finally:
            self.left += not ended


def measure(
    script: Script, habits=PATIENT, sessions: int | None = 3, rate: float | None = None, seconds=60.0, warm_up=10.0
):
    """A load by the clock that jumps, judged by an objective of half a second."""
    tried = load.Load(lambda: script, QUESTIONS, habits, sessions, rate, warm_up, seconds)

    async def scenario() -> None:
        with tqdm(disable=True) as bar:
            await tried.run(bar)

    run(scenario())
    assert script.open == 0
    return load.judge(tried, 0.5)


def test_a_good_cluster_meets_the_objective():
    """Every delay is the script's; nobody hears a gap; three people talk all the time."""
    found = measure(Script())
    assert found["first_audio"]["p50"] == pytest.approx(0.2) and found["first_audio"]["p99"] == pytest.approx(0.2)
    assert (found["underruns"], found["errors"], found["met"]) == (0, {}, True)
    assert found["live"] == pytest.approx(3.0, abs=0.05) and found["most_live"] == 3
    assert found["goodput"] == pytest.approx(found["turns_per_second"])
    # a turn is 2 s of question, 0.2 s of waiting, 4 s of answer, and 0.75 s of thought: of four, one is not thought of
    assert found["turns"] == pytest.approx(3 * 60 / 6.95, rel=0.15)


def test_sound_that_comes_too_slowly_is_an_underrun():
    """A second of sound every 1.2 s: after the first piece, each one leaves a gap of 0.2 s."""
    found = measure(Script(pace=1.2, pieces=3))
    assert found["underruns"] == 2 * found["turns"]
    assert found["longest_gap"] == pytest.approx(0.2) and not found["met"] and found["goodput"] == 0


def test_errors_and_silence_are_counted():
    """A refusal is an error by its code; who is never answered gives up, at the latest when the time is up."""
    found = measure(Script(failure="busy"))
    assert found["errors"] == {"busy": found["turns"]} and found["turns"] > 20 and not found["met"]
    found = measure(Script(hang=True), seconds=40.0, warm_up=0.0)
    assert sum(found["errors"].values()) == found["turns"] >= 3
    assert set(found["errors"]) <= {"silence", "unfinished"} and found["first_audio"]["p50"] is None


def test_a_slow_cluster_is_measured_by_all_its_turns():
    """Answers that come after the time is up still count, with their delays."""
    found = measure(Script(delay=25.0), seconds=30.0)
    assert found["turns"] >= 3 and found["first_audio"]["p50"] == pytest.approx(25.0)


def test_people_interrupt():
    """Some leave while the answer comes, some while its rest plays; the next question follows."""
    script = Script(pieces=4, pace=0.5)
    found = measure(script, Habits(mean_turns=4.0, mean_think=1.0, interrupting=1.0, patience=4.0))
    assert 0 < script.left < script.asked
    assert found["interrupted"] >= 0.9 * found["turns"] and found["met"]


def test_conversations_arrive_come_what_may():
    """A Poisson process does not wait for a slow cluster: people pile up."""
    quick = measure(Script(), sessions=None, rate=0.5)
    slow = measure(Script(delay=20.0), sessions=None, rate=0.5)
    assert slow["live"] > 1.5 * quick["live"] > 7


@pytest.mark.parametrize(("places", "expected"), [(1, [1, 2]), (11, [1, 2, 4, 8, 16, 12, 10, 11]), (0, [1])])
def test_a_search_finds_how_many_it_holds(places: int, expected: list[int]):
    """Doubling until it is missed, then halving."""

    async def one(sessions: int) -> dict:
        return {"sessions": sessions, "met": sessions <= places}

    found = run(load.search(one, 64))
    assert [each["sessions"] for each in found] == expected


def test_a_search_ends_at_its_limit():
    async def one(sessions: int) -> dict:
        return {"sessions": sessions, "met": True}

    assert [each["sessions"] for each in run(load.search(one, 6))] == [1, 2, 4, 6]


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    load.add_arguments(parser)
    return parser.parse_args(["http://127.0.0.1:1", *words])


def test_the_whole_search_by_the_clock():
    """A cluster with room for five: the search says five, in a table."""
    loads = run(load.run(arguments("--search", "--objective", "0.5"), lambda: Script(places=5), QUESTIONS))
    largest = max(each["sessions"] for each in loads if each["met"])
    assert largest == 5
    said = load.summary({"loads": loads, "objective": 0.5, "cluster": {"model": 1}, "largest": largest})
    assert "The most live sessions that meet it: 5." in said and "| 5 sessions |" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sessions", "0"], "--sessions is 0"),
        (["--rate", "-1"], "--rate is -1"),
        (["--barge-in", "2"], "--barge-in is 0 … 1"),
        (["--seconds", "0"], "--seconds is 0"),
    ],
    ids=" ".join,
)
def test_bad_wishes_are_told(words: list[str], said: str, capsys):
    assert load.main(arguments(*words)) == 2
    assert said in capsys.readouterr().err


def test_no_controller_is_told(capsys):
    assert load.main(arguments()) == 1
    assert "no controller answers at http://127.0.0.1:1" in capsys.readouterr().err


def test_a_plot_without_matplotlib_is_told_first(monkeypatch, capsys, tmp_path):
    """Before an hour of measuring, not after it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert load.main(arguments("--plot", str(tmp_path / "load.png"))) == 2
    assert "pip install" in capsys.readouterr().err


async def over_http(tmp_path, cluster: FakeCluster, interrupting: float = 0.0) -> load.Load:
    """Four people for two seconds."""
    asked = [Question(question(0.1), 0.1)]
    habits = Habits(mean_turns=2.0, mean_think=0.05, interrupting=interrupting, patience=0.5)
    async with over_tcp(make_app(config(tmp_path), cluster)) as url:
        tried = load.Load(lambda: Turns(url, None, {"seed": 1}), asked, habits, 4, None, 0.0, 2.0)
        with tqdm(disable=True) as bar:
            await tried.run(bar)
    return tried


async def test_people_talk_to_the_fake_cluster(tmp_path):
    """Over HTTP in real time: each turn has its 66 frames of 20 ms; every request was given back.

    Underruns are for the tests by a clock of their own: a busy machine has them here.
    """
    cluster = FakeCluster()
    tried = await over_http(tmp_path, cluster)
    found = load.judge(tried, 1.0)
    assert found["turns"] >= 4 and found["errors"] == {}
    assert {each.seconds for each in tried.turns} == {66 * 0.02}
    assert len(cluster.requests) == len(cluster.closed) == len(tried.turns)
    about = report.about()
    assert report.heading(about) and load.summary({"loads": [found], "objective": 1.0, "cluster": {"model": 1}})


async def test_leaving_a_turn_frees_it(tmp_path):
    """An interruption closes the stream, and the cluster's part ends with it."""
    cluster = FakeCluster()
    cluster.gate, cluster.gate_at = asyncio.Event(), 9  # sound comes, and the end never does
    tried = await over_http(tmp_path, cluster, interrupting=1.0)
    assert len(tried.turns) >= 4 and all(each.interrupted for each in tried.turns if each.error is None)
    assert len(cluster.requests) == len(cluster.closed)


async def test_a_lost_worker_is_an_error_with_its_code(tmp_path):
    cluster = FakeCluster()
    cluster.error = lost_worker()
    tried = await over_http(tmp_path, cluster)
    assert {each.error for each in tried.turns} == {"worker_lost"}


def test_load_is_a_command_of_its_own():
    assert command.BENCHMARKS["load"][0] == load.__name__


# --- live -------------------------------------------------------------------------------------------------------------


class LongAnswers(FakeCluster):
    """An answer that lasts: words and sound for as long as anyone listens, one after the other."""

    async def generate(self, request: TurnRequest) -> AsyncIterator[Tokens]:
        self.requests.append(request)
        try:
            for number in count():
                yield Tokens(request.epoch, number, (1,), " word", (7,) * 20, num_prompt_tokens=17, worker="w1")
                await asyncio.sleep(0.1)
        finally:
            self.closed.append(request.turn_id)


async def over_a_socket(tmp_path, cluster: FakeCluster, habits: Habits, seconds: float) -> tuple[load.Load, list]:
    """Two people with open microphones, and the turns that the controller still knows afterwards."""
    asked = [Question(b"", len(each) / SAMPLE_RATE, to_pcm16(each)) for each in questions.recordings()[:3]]
    heard = live_transport.hearable(asked, 300)
    app = make_app(config(tmp_path), cluster)
    async with over_tcp(app) as url:
        speak = partial(live_transport.Live, url, None, {"seed": 1}, heard, 300)
        tried = load.Load(speak, list(heard), habits, 2, None, 0.0, seconds)
        with tqdm(disable=True) as bar:
            await tried.run(bar)
        await until(lambda: not app.state.registry.live and not app.state.registry.sockets)
    return tried, list(heard)


async def test_people_with_open_microphones(tmp_path):
    """Each recording is heard as one question, and answered whole; its delay counts twice."""
    cluster = FakeCluster()
    habits = Habits(mean_turns=2.0, mean_think=0.1, interrupting=0.0)
    tried, _ = await over_a_socket(tmp_path, cluster, habits, 4.0)
    found = load.judge(tried, 5.0)
    assert found["turns"] >= 2 and found["errors"] == {} and found["silenced"]["n"] == 0
    assert {each.seconds for each in tried.turns} == {66 * 0.02}
    for each in tried.turns:
        assert each.after_speech - each.first_audio == pytest.approx(0.3, abs=0.06)  # the silence asked for
        assert each.first_audio > 0
    assert len(cluster.closed) == len(cluster.requests) >= len(tried.turns)
    table = load.summary({"loads": [found], "objective": 5.0, "cluster": {"model": 1}, "transport": "realtime"})
    assert "after the last word" in table


async def test_people_who_talk_over_answers(tmp_path):
    """The next question silences the answer: measured from its sound, from the ear's window and from the event."""
    cluster = LongAnswers()
    habits = Habits(mean_turns=1e9, mean_think=60.0, interrupting=1.0, patience=1.0)  # thinking would last too long
    tried, _ = await over_a_socket(tmp_path, cluster, habits, 8.0)
    found = load.judge(tried, 60.0)
    silenced = [each.silenced for each in tried.turns if each.silenced is not None]
    assert len(silenced) >= found["silenced"]["n"] >= 1
    for each in silenced:
        assert each.from_speech > each.from_onset > -0.04 and each.from_event >= 0  # an ear may be a window early
        assert each.from_speech - each.from_onset == pytest.approx(0.064, abs=0.021)  # two windows, a whole frame
    assert len(cluster.closed) == len(cluster.requests) >= 4


async def test_a_lost_worker_is_a_live_error_too(tmp_path):
    """With its code; and the next question is asked on the same socket."""
    cluster = FakeCluster()
    cluster.error = lost_worker()
    tried, _ = await over_a_socket(tmp_path, cluster, Habits(mean_turns=2.0, mean_think=0.1, interrupting=0.0), 3.0)
    assert {each.error for each in tried.turns} == {"worker_lost"}


async def test_no_line_is_an_error_and_no_storm(tmp_path):
    """Nobody listens there: each person tries once per question, not all the time."""
    asked = [Question(b"", 0.4, to_pcm16(questions.recordings()[0]))]
    heard = live_transport.hearable(asked, 300)
    speak = partial(live_transport.Live, "http://127.0.0.1:1", None, {}, heard, 300)
    tried = load.Load(speak, list(heard), Habits(mean_turns=1.0, mean_think=0.0, interrupting=0.0), 2, None, 0.0, 1.5)
    with tqdm(disable=True) as bar:
        await tried.run(bar)
    found = load.judge(tried, 1.0)
    assert set(found["errors"]) == {"unreachable"}
    assert 2 <= len(tried.turns) <= 2 * (1.5 / 0.4 + 1)
