"""The answers of one conversation, without sound or socket: what is posted, in which order, and what is given back."""

import asyncio
from typing import Any

import pytest
from fake_cluster import FakeCluster, config, until, whole_answer

from omni.serve.conversation import Conversation, Item
from omni.serve.errors import BadRequest
from omni.serve.metrics import Metrics
from omni.serve.realtime_settings import Settings
from omni.serve.registry import Registry
from omni.serve.responding import Responding
from omni.serve.saying import Saying
from omni.serve.sessions import Session
from omni.serve.window import Window


class Room:
    """A conversation whose answers are given by a fake cluster, and the list of what is said in it."""

    def __init__(self, directory, **settings: Any) -> None:
        self.cluster = FakeCluster()
        self.config = config(directory)
        self.posted: list[Any] = []
        self.registry = Registry(self.config, self.cluster, Metrics())
        self.saying = Saying(
            post=lambda message, *_: self.posted.append(message), withdraw=self.withdraw, room=self.room
        )
        own = Settings().updated({"audio": {"input": {"format": {"rate": 16000}}}, **settings})
        self.ends = 0
        self.responding = Responding(self.registry, self.saying, own, when_ended=self.ended)
        self.session = Session("sess_1", Conversation(Window.of(self.config)))
        self.responding.adopt(self.session)

    async def room(self) -> None:
        pass

    def withdraw(self, owner: Any) -> float:
        return 0.0

    def ended(self) -> None:
        self.ends += 1

    def ask(self, question: Item) -> None:
        """As at the end of speech: it is the last item, and is answered."""
        self.session.conversation.add(question)
        self.responding.question_ended(question, 0)

    def kinds(self) -> list[str]:
        return [each["type"] for each in self.posted]

    def outcomes(self) -> dict[str, int]:
        ended = self.registry.metrics.ended
        return {name: int(ended.labels(name)._value.get()) for name in ("ok", "cancelled", "failed")}


def question(loudness: int = 1) -> Item:
    return Item.speech(bytes([loudness, loudness]) * 1_600, f"item_{loudness}")


@pytest.fixture
def room(tmp_path) -> Room:
    return Room(tmp_path)


async def test_a_guess_says_nothing_until_the_question_has_ended(room):
    room.responding.guess(question(), 0)
    await until(lambda: room.cluster.vocoded)
    assert room.posted == [] and len(room.registry.live) == 1
    room.ask(question())
    await until(lambda: "response.done" in room.kinds())
    assert len(room.cluster.requests) == 1 and room.ends == 1
    assert room.outcomes() == {"ok": 1, "cancelled": 0, "failed": 0}


@pytest.mark.parametrize("change", ["the question", "the settings", "the conversation"])
async def test_a_guess_at_something_else_is_not_said(room, change):
    """It is dropped, and an answer to what was really asked is begun."""
    room.responding.guess(question(1), 0)
    await until(lambda: room.cluster.closed)
    if change == "the settings":
        room.responding.change(room.responding.settings)
    elif change == "the conversation":
        room.responding.outdate()
    asked = question(2 if change == "the question" else 1)
    room.ask(asked)
    room.responding.drop_guess("Another answer is given.")
    await until(lambda: "response.done" in room.kinds())
    assert len(room.cluster.requests) == len(room.cluster.closed) == 2
    assert room.cluster.requests[1].messages[-1].pcm16 == asked.pcm16
    assert room.outcomes() == {"ok": 1, "cancelled": 1, "failed": 0}


async def test_a_guess_that_is_dropped_gives_its_slot_back(room):
    room.cluster.gate = asyncio.Event()
    room.responding.guess(question(), 0)
    await until(lambda: room.cluster.requests)
    room.responding.drop_guess("The speaker went on.")
    await until(lambda: not room.responding.has_run)
    assert len(room.cluster.closed) == 1 and not room.registry.live and room.posted == []


async def test_an_interrupted_answer_ends_once_and_keeps_nothing_running(room):
    room.cluster.gate, room.cluster.gate_at = asyncio.Event(), 8
    room.ask(question())
    await until(lambda: "response.output_audio.delta" in room.kinds())
    room.responding.silence()
    assert "response.done" not in room.kinds()
    room.responding.interrupt("turn_detected")
    room.responding.interrupt("turn_detected")
    await room.responding.close("The client left.")
    assert room.kinds().count("response.done") == room.ends == 1
    heard = room.session.conversation.items[-1]
    assert heard.status == "incomplete" and whole_answer()[0].startswith(heard.heard.text)
    assert not room.registry.live and len(room.cluster.closed) == 1


async def test_a_question_in_an_answer_that_is_not_interrupted_comes_next(room):
    room.cluster.gate = asyncio.Event()
    room.ask(question(1))
    await until(lambda: room.cluster.requests)
    with pytest.raises(BadRequest, match="answer already"):
        room.responding.create({})
    room.ask(question(2))
    room.cluster.gate.set()
    await until(lambda: room.kinds().count("response.done") == 2)
    assert [len(each.messages) for each in room.cluster.requests] == [1, 3]


async def test_a_draining_controller_begins_nothing(room):
    room.responding.drain()
    room.responding.guess(question(), 0)
    assert not room.responding.has_run and room.cluster.requests == []
