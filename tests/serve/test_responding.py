"""The answers of one conversation, without sound or socket: what is posted, in which order, and what is given back."""

import asyncio
from typing import Any

import jumping_clock
import pytest
from fake_cluster import FakeCluster, config, until, whole_answer

from omni.serve.conversation import Conversation, Item
from omni.serve.errors import BadRequest, Busy
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


def test_what_was_made_in_the_pause_leaves_in_the_moment_of_its_end(tmp_path):
    """The first sound is posted in the same instant as `committed` by a clock that moves for every wait: no timer, no
    poll and no step of a worker stands between them. What was not made yet comes as it is made, in order."""

    async def scenario() -> None:
        loop, room = asyncio.get_running_loop(), Room(tmp_path)
        room.registry.clock = loop.time
        room.cluster.gate, room.cluster.gate_at = asyncio.Event(), 8
        room.responding.guess(question(), 0)
        await asyncio.sleep(0.4)  # the rest of the silence
        made, then = room.cluster.vocoded, loop.time()
        room.ask(question())
        turns = 0
        while "response.output_audio.delta" not in room.kinds():
            await asyncio.sleep(0)
            turns += 1
        assert loop.time() == then and turns < 100, "of the event loop: some microseconds each"
        assert made > 0 and (room.cluster.vocoded, len(room.cluster.requests)) == (made, 1)
        assert room.kinds()[:2] == ["response.created", "rate_limits.updated"]
        room.cluster.gate.set()
        await until(lambda: "response.done" in room.kinds())
        timing = room.posted[-1]["response"]["omni"]["timing"]
        assert timing["speculative"] and timing["first_audio_ms"] == 0
        await room.responding.close("The client left.")

    jumping_clock.run(scenario())


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


# --- reading ahead ----------------------------------------------------------------------------------------------------


async def converse(room: Room) -> None:
    """One question and its answer, so that there is something to read ahead."""
    room.ask(question(1))
    await until(lambda: "response.done" in room.kinds())


async def test_what_was_said_is_read_while_the_next_question_is(room):
    """Exactly what its turn's prompt begins with; and the question goes to the worker that has read it."""
    await converse(room)
    room.session.worker, room.cluster.worker = "lost", "w2"
    room.responding.read_ahead()
    await until(lambda: room.cluster.readings and not room.cluster.reading)
    room.responding.guess(question(2), 0)
    await until(lambda: len(room.cluster.requests) == 2)
    read, asked = room.cluster.readings[0], room.cluster.requests[1]
    assert read.messages == asked.messages[:-1] and len(read.messages) == 2
    assert (read.prefer, asked.prefer) == ("lost", "w2")


async def test_instructions_are_read_ahead(tmp_path):
    room = Room(tmp_path, instructions="Be brief.")
    room.responding.read_ahead()
    await until(lambda: room.cluster.readings)
    assert [each.text for each in room.cluster.readings[0].messages] == ["Be brief."]
    await room.responding.close("The client left.")


async def test_where_nothing_was_said_nothing_is_read(room):
    """Nor by a controller that is draining, though something was."""
    room.responding.read_ahead()
    room.session.conversation.add(question(3))
    room.responding.drain()
    room.responding.read_ahead()
    await room.responding.close("The client left.")
    assert room.cluster.readings == []


@pytest.mark.parametrize("end", ["the pause", "another beginning", "the socket's end", "draining"])
async def test_a_reading_ends_with_its_reason(room, end):
    """Nothing of it is left at the worker, whatever comes."""
    await converse(room)
    room.cluster.reading_gate = asyncio.Event()
    room.responding.read_ahead()
    await until(lambda: room.cluster.reading == 1)
    if end == "the pause":
        room.responding.guess(question(2), 0)
    elif end == "another beginning":
        room.responding.read_ahead()
        await until(lambda: len(room.cluster.readings) == 2)
    elif end == "draining":
        room.responding.drain()
    await until(lambda: room.cluster.reading == (end in ("another beginning", "the socket's end")))
    await room.responding.close("The client left.")
    assert room.cluster.reading == 0


async def test_a_reading_that_fails_is_nobodys_error(room):
    """The question's own turn tells what is wrong, if it still is."""
    await converse(room)
    room.cluster.error = Busy("Every slot is taken.")
    room.responding.read_ahead()
    await until(lambda: room.cluster.readings and not room.cluster.reading)
    room.cluster.error = None
    said = len(room.posted)
    room.ask(question(2))
    await until(lambda: room.kinds().count("response.done") == 2)
    assert "error" not in room.kinds()[said:] and room.cluster.requests[1].prefer == "w1"
