"""Sessions on a real cluster: they stay with their worker and outlive it, and a controller that ends or is left."""

import asyncio
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import websockets
from fake_cluster import tone, until
from realtime_client import RealtimeClient, talk
from redis_server import PASSWORD, redis_server
from up import Up
from waiting import free_port, wait_until

from omni.audio import wav
from omni.serve import ray_node
from omni.serve.config import STORE_PASSWORD_VARIABLE, ServeConfig
from omni.serve.realtime_client import Answered, Resumed, Words, connect_realtime

TOKENS = 24
ATTEMPTS = 3  # a worker that is silent for too long loses its sessions, as it should: a busy machine may do that
AUDIO = {"turn_detection": None, "format": {"type": "audio/pcm", "rate": 16_000}}


@dataclass(frozen=True)
class Turn:
    text: str
    pcm16: bytes
    asked: int  # positions of the prompt
    cached: int  # those among them that the worker held already
    answered: int

    def is_as(self, other: "Turn") -> bool:
        """The same words, as many samples, and each within one step of int16."""
        ours, theirs = (np.frombuffer(each.pcm16, dtype="<i2").astype(int) for each in (self, other))
        return self.text == other.text and len(ours) == len(theirs) and bool(np.abs(ours - theirs).max() <= 1)


@asynccontextmanager
async def session(url: str, instructions: str):
    """A new one, by push-to-talk at the model's own rate."""
    async with talk(url) as client:
        await client.update(instructions=instructions, max_output_tokens=TOKENS, audio={"input": AUDIO})
        yield client


def question(number: int) -> bytes:
    """Number 1, 2, …: each another length."""
    return wav.to_pcm16(tone(0.4 + 0.2 * number))


async def ask(client: RealtimeClient, number: int) -> Turn:
    since = len(client.heard)
    await client.append(question(number))
    await client.send("input_audio_buffer.commit")
    await client.send("response.create")
    response = (await client.until("response.done", seconds=60))["response"]
    assert response["status"] in ("completed", "incomplete"), response
    usage = response["usage"]
    cached = usage["input_token_details"]["cached_tokens"]
    sound = client.sound(since)
    text = response["output"][0]["content"][0]["transcript"]
    return Turn(text, sound, usage["input_tokens"], cached, usage["output_tokens"])


def own_instructions() -> str:
    """Words that no other session begins with: what a worker holds of this one, it has from this one alone."""
    return f"{uuid.uuid4()}: be brief."


async def worker_of(up: Up, session_id: str) -> dict[str, Any]:
    """The model worker that a session is kept with."""

    def kept() -> str:
        with closing(sqlite3.connect(up.store)) as db:
            row = db.execute("SELECT head FROM sessions WHERE id = ?", (session_id,)).fetchone()
        return json.loads(row[0])["worker"] if row and row[0] else ""

    await until(kept)
    return {each["id"]: each for each in up.workers("model")}[kept()]


# --- with its worker --------------------------------------------------------------------------------------------------


async def three_turns(up: Up) -> tuple[list[Turn], set[int]]:
    """What was answered, and the processes that did."""
    async with session(up.url, own_instructions()) as client:
        turns, pids = [], set()
        for number in (1, 2, 3):
            turns.append(await ask(client, number))
            pids.add((await worker_of(up, client.token["session_id"]))["pid"])
        return turns, pids


async def test_sessions_stay_with_their_worker(up: Up):
    """Four at once on two workers, of which now one and now the other has less to do: each turn reads only what is
    new, for no other worker holds what came before."""
    for attempt in range(ATTEMPTS):
        up.both_there("model")
        results = await asyncio.gather(*(three_turns(up) for _ in range(4)))
        if all(len(pids) == 1 for _, pids in results):
            break
        assert attempt + 1 < ATTEMPTS, [pids for _, pids in results]
    for turns, _ in results:
        for before, turn in itertools.pairwise(turns):
            assert before.asked + before.answered - 1 <= turn.cached < turn.asked


async def test_a_session_outlives_its_worker(up: Up):
    """Killed between two turns: the next one is answered by the other worker as if nothing had happened."""
    up.both_there("model")
    instructions = own_instructions()
    async with session(up.url, instructions) as client:
        undisturbed = [await ask(client, number) for number in (1, 2, 3)]
    async with session(up.url, instructions) as client:
        turns = [await ask(client, number) for number in (1, 2)]
        victim = await worker_of(up, client.token["session_id"])
        os.kill(victim["pid"], signal.SIGKILL)
        turns.append(await ask(client, 3))
        assert (await worker_of(up, client.token["session_id"]))["pid"] != victim["pid"]
    assert all(map(Turn.is_as, turns, undisturbed))


# --- at another controller --------------------------------------------------------------------------------------------


async def drained(client: RealtimeClient, pid: int) -> None:
    """The controller is told to end: it says so, and closes with 1012."""
    os.kill(pid, signal.SIGTERM)
    assert (await client.until("error"))["error"]["code"] == "draining"
    with pytest.raises(websockets.ConnectionClosedError) as closed:
        await client.next()
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012


async def resume(client: RealtimeClient, session_id: str, token: str) -> dict[str, Any]:
    """The session, or the error."""
    await client.send("omni.session.resume", session_id=session_id, token=token)
    return await client.until("session.updated", "error")


async def assert_refused(url: str, session_id: str, token: str) -> None:
    async with talk(url) as client:
        answer = await resume(client, session_id, token)
        assert answer["type"] == "error", "resumed"
        assert (answer["error"]["code"], answer["error"]["type"]) == ("session_not_resumable", "invalid_request_error")
        await client.update()  # and the new session goes on as it is


def items(client: RealtimeClient) -> list[dict[str, Any]]:
    return [each["item"] for each in client.of("conversation.item.done")]


async def go_on(url: str, before: RealtimeClient, number: int) -> Turn:
    """Resume a session elsewhere, with all that was said in it, and ask this question. Its tokens are good once; a
    guess is good for nothing."""
    session_id, first = before.token["session_id"], before.token["token"]
    async with talk(url) as client:
        assert (await resume(client, session_id, first))["session"]["id"] == session_id
        second = (await client.until("omni.session.token"))["token"]
        assert items(client) == items(before)
        client.connection.transport.abort()  # type: ignore[union-attr]  # no goodbye
    async with talk(url) as client:
        assert (await resume(client, session_id, second))["type"] == "session.updated"
        await client.until("omni.session.token")
        assert items(client) == items(before)
        await assert_refused(url, session_id, first)
        await assert_refused(url, session_id, "x" * len(first))
        await assert_refused(url, f"sess_{uuid.uuid4().hex[:24]}", second)
        return await ask(client, number)


def controller_of(up: Up) -> int:
    return next(pid for pid in up.processes() if "omni.serve.driver" in Path(f"/proc/{pid}/cmdline").read_text())


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


async def two_questions(url: str, settings: dict[str, Any], end_it: Callable[[], Awaitable[None]]) -> list[str]:
    """A program of our own client's: it loops over the events, and sees `Resumed` after the controller has ended."""
    texts = [""]
    async with connect_realtime(url, settings=settings, attempts=20) as session:
        await session.ask(question(1))
        async for event in session:
            match event:
                case Words(text=text):
                    texts[-1] += text
                case Answered() if len(texts) == 2:
                    return texts
                case Answered():
                    texts.append("")
                    await end_it()
                case Resumed(remembers=remembers, unanswered=unanswered):
                    assert (remembers, unanswered) == (True, False)
                    await session.ask(question(2))
    raise AssertionError("the session ended")


async def test_sessions_outlive_their_controller(up: Up):
    """It drains and is started again, by `omni up` and on the same SQLite file. The worker has kept what it holds."""
    up.both_there("model")
    instructions = own_instructions()
    async with session(up.url, instructions) as client:
        undisturbed = [await ask(client, number) for number in (1, 2)]
    settings = {"instructions": instructions, "max_output_tokens": TOKENS}
    async with session(up.url, instructions) as client:
        first = await ask(client, 1)
        end_it = partial(drained, client, controller_of(up))
        texts = await two_questions(up.url, settings, end_it)
    second = await go_on(up.url, client, 2)
    assert first.is_as(undisturbed[0]) and second.is_as(undisturbed[1])
    assert second.cached >= first.asked + first.answered - 1
    assert texts == [each.text for each in undisturbed]


@contextmanager
def another_controller(up: Up, directory: Path, **changes: Any) -> Iterator[tuple[str, int]]:
    """One more controller of this cluster, with settings of its own. Yields its URL and its process' id."""
    config = replace(ServeConfig.read(up.state_dir / "config.json"), port=free_port(), **changes)
    config.write(directory / f"{config.port}.json")
    environment = ray_node.environment(up.state_dir, config.ray_token_file) | {STORE_PASSWORD_VARIABLE: PASSWORD}
    command = [sys.executable, "-m", "omni.serve.driver", str(directory / f"{config.port}.json")]
    log = directory / f"{config.port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | environment)
    try:
        yield f"http://127.0.0.1:{config.port}", process.pid
    finally:
        process.terminate()
        assert process.wait(30) == 0, log.read_text()


async def test_controllers_that_share_a_store_share_their_sessions(up: Up, tmp_path: Path):
    """The one that a client talks to ends, and the client goes on at the other one, which was there all the time."""
    up.both_there("model")
    instructions = own_instructions()
    with (
        redis_server(tmp_path) as redis,
        another_controller(up, tmp_path, store=redis) as (here, pid),
        another_controller(up, tmp_path, store=redis) as (there, _),
    ):
        wait_until(lambda: is_ready(here) and is_ready(there))
        async with session(there, instructions) as client:
            undisturbed = [await ask(client, number) for number in (1, 2)]
        async with session(here, instructions) as client:
            first = await ask(client, 1)
            await drained(client, pid)
        second = await go_on(there, client, 2)
    assert first.is_as(undisturbed[0]) and second.is_as(undisturbed[1])
    assert second.cached >= first.asked + first.answered - 1
