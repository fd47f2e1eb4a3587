"""One socket's way out: in order, withdrawn while it waits, bounded, and given up when nobody takes it."""

import asyncio
import json

import pytest
from fake_cluster import until

from omni.serve.live_socket import ROOM, LiveSocket


class Wire:
    """An ASGI connection that takes messages only while its gate is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.sent: list[dict] = []
        self.inbox: asyncio.Queue[dict] = asyncio.Queue()

    async def send(self, message: dict) -> None:
        await self.gate.wait()
        self.sent.append(message)

    async def receive(self) -> dict:
        return await self.inbox.get()


@pytest.fixture
def wire() -> Wire:
    return Wire()


def texts(wire: Wire) -> list:
    return [json.loads(each["text"]) if "text" in each else each["bytes"] for each in wire.sent]


async def test_messages_keep_their_order(wire):
    socket = LiveSocket(wire.receive, wire.send, send_seconds=5)
    wire.gate.set()
    for i in range(5):
        socket.post({"n": i})
        socket.post(bytes([i]))
    await until(lambda: len(wire.sent) == 10)
    assert texts(wire) == [each for i in range(5) for each in ({"n": i}, bytes([i]))]
    assert socket.bytes_out == 5 * len(json.dumps({"n": 0})) + 5


async def test_what_waits_can_be_withdrawn(wire):
    """What is on its way already is not; the seconds that never left are told."""
    socket = LiveSocket(wire.receive, wire.send, send_seconds=5)
    for i in range(4):
        socket.post({"old": i}, owner="old", seconds=0.5)
        socket.post({"other": i})
    await asyncio.sleep(0)  # the writer takes the first
    assert socket.withdraw("old") == 3 * 0.5
    wire.gate.set()
    await until(lambda: len(wire.sent) == 5)
    assert texts(wire) == [{"old": 0}, *({"other": i} for i in range(4))]


async def test_there_is_room_again_when_something_was_taken(wire):
    socket = LiveSocket(wire.receive, wire.send, send_seconds=5)
    for i in range(ROOM + 1):
        socket.post({"n": i})
    waiting = asyncio.create_task(socket.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    wire.gate.set()
    await asyncio.wait_for(waiting, 5)


async def test_a_client_that_takes_nothing_is_given_up(wire):
    """After the deadline it is gone: nothing waits for it, it is not heard any more, and nobody waits for room."""
    socket = LiveSocket(wire.receive, wire.send, send_seconds=0.05)
    for i in range(ROOM + 1):
        socket.post({"n": i})
    await asyncio.wait_for(socket.room(), 5)
    assert socket.gone
    socket.post({"more": 1})
    wire.inbox.put_nowait({"type": "websocket.receive", "text": "hello"})
    assert await socket.receive() is None
    wire.gate.set()
    await socket.close(1000)
    assert wire.sent == []


async def test_closing_sends_what_waits_first(wire):
    socket = LiveSocket(wire.receive, wire.send, send_seconds=5)
    wire.gate.set()
    socket.post({"error": 1})
    await socket.close(1013, "busy")
    assert wire.sent[-1] == {"type": "websocket.close", "code": 1013, "reason": "busy"} and len(wire.sent) == 2
