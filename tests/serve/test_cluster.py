"""The real cluster: two model and two vocoder workers under Ray Serve, killed and stopped while they answer."""

import base64
import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from up import Up
from waiting import wait_until

QUESTION = (Path(__file__).parents[1] / "golden" / "audio" / "utt0.wav").read_bytes()
TOKENS = 40


@dataclass
class Answer:
    text: str = ""
    pcm: bytes = b""
    end: dict = field(default_factory=dict)

    @property
    def samples(self) -> np.ndarray:
        return np.frombuffer(self.pcm, dtype="<i2").astype(int)


def ask(up: Up, on_event: Callable[[dict], None] = lambda event: None, tokens: int = TOKENS) -> Answer:
    answer = Answer()
    url = f"{up.url}/v1/turns?max_new_tokens={tokens}"
    accept = {"accept": "application/x-ndjson"}
    with httpx.stream("POST", url, content=QUESTION, headers=accept, timeout=60) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            event = json.loads(line)
            on_event(event)
            if event["type"] == "text":
                answer.text += event["text"]
            elif event["type"] == "audio":
                answer.pcm += base64.b64decode(event["pcm16"])
            answer.end = event
    return answer


@pytest.fixture(scope="module")
def undisturbed(up: Up) -> Answer:
    answer = ask(up)
    assert answer.end["type"] == "done" and answer.end["num_tokens"] == TOKENS
    assert len(answer.pcm) == 2 * answer.end["num_samples"] > 0
    return answer


def assert_same(answer: Answer, undisturbed: Answer) -> None:
    """Recovered = undisturbed: the same text, as many samples, and each within one step of int16."""
    assert answer.end["type"] == "done", answer.end
    assert answer.text == undisturbed.text
    assert len(answer.samples) == len(undisturbed.samples)
    assert np.abs(answer.samples - undisturbed.samples).max() <= 1


def busiest(up: Up, kind: str, since: dict[int, int]) -> int:
    """The worker that has computed most since then: the one that has the turn."""
    return max(since, key=lambda pid: cpu_ticks(pid) - since[pid])


def cpu_ticks(pid: int) -> int:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(words[11]) + int(words[12])


class Saboteur:
    """Sends a signal to the worker that has the turn, once this event has come so often."""

    def __init__(self, up: Up, kind: str, number: signal.Signals, event: str, times: int) -> None:
        self.up, self.kind, self.number, self.event, self.left = up, kind, number, event, times
        self.before = {each["pid"]: cpu_ticks(each["pid"]) for each in up.workers(kind)}
        self.victim = 0

    def __call__(self, event: dict) -> None:
        self.left -= event["type"] == self.event
        if self.left == 0 and not self.victim:
            self.victim = busiest(self.up, self.kind, self.before)
            os.kill(self.victim, self.number)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_model_worker_lost_during_an_answer(up, undisturbed, number):
    """Another worker goes on, and the listener hears what an undisturbed one would."""
    up.both_there("model")
    saboteur = Saboteur(up, "model", number, "text", TOKENS // 3)
    try:
        answer = ask(up, saboteur)
    finally:
        if number == signal.SIGSTOP and saboteur.victim:
            os.kill(saboteur.victim, signal.SIGCONT)
    assert saboteur.victim
    assert_same(answer, undisturbed)


def test_vocoder_worker_killed_during_an_answer(up, undisturbed):
    """The same chunk goes to the other one; no token is generated twice."""
    up.both_there("vocoder")
    saboteur = Saboteur(up, "vocoder", signal.SIGKILL, "audio", 1)
    answer = ask(up, saboteur)
    assert saboteur.victim
    assert_same(answer, undisturbed)


def test_neighbours_do_not_disturb_each_other(up, undisturbed):
    """Six answers at once are six times the answer alone."""
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(up))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 6
    for answer in answers:
        assert_same(answer, undisturbed)


def test_client_that_leaves_frees_its_slot(up):
    """The worker stops within a step; it would else go on for hundreds."""
    url = f"{up.url}/v1/turns?max_new_tokens=250"
    with httpx.stream(
        "POST", url, content=QUESTION, headers={"accept": "application/x-ndjson"}, timeout=60
    ) as response:
        next(response.iter_lines())

    wait_until(lambda: not any(worker["running"] for worker in up.workers("model")), seconds=10)
