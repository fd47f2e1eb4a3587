"""Live speech against a real cluster with the mini checkpoint: recordings as the microphone, as fast as spoken."""

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from realtime_client import RealtimeClient, talk
from up import Up, assert_gone, end_up, start_up
from waiting import wait_until

from omni.audio import wav

HELDOUT = Path(__file__).parents[2] / "omni" / "train" / "data" / "heldout"
PORTION = 640  # bytes: 20 ms
PAUSE = bytes(2 * 16_000)  # a second of silence, longer than silence_duration_ms


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> Iterator[Up]:
    home = tmp_path_factory.mktemp("mini")
    one_each = ("--model-workers", "1", "--vocoder-workers", "1")
    running = start_up(home, "--model", "mini", *one_each, "--silence-deadline", "10")
    try:
        yield running
    finally:
        assert end_up(running) == 0, running.log.read_text()
        assert_gone(running)


async def speak(client: RealtimeClient, pcm16: bytes) -> None:
    """As a microphone does: 20 ms every 20 ms."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    for i, at in enumerate(range(0, len(pcm16), PORTION)):
        await asyncio.sleep(start + 0.02 * i - loop.time())
        audio = base64.b64encode(pcm16[at : at + PORTION]).decode()
        await client.send("input_audio_buffer.append", audio=audio)


def question(number: int) -> bytes:
    return wav.to_pcm16(wav.read(HELDOUT / f"chitchat-{number:03d}.flac"))


async def test_a_conversation_of_three_turns_with_an_interruption(mini):
    """Each question is answered by sound; speech over the second answer ends it; the third one remembers both."""
    async with talk(mini.url) as client:
        await client.update(audio={"input": {"format": {"rate": 16000}}}, max_output_tokens=60)
        await speak(client, question(0) + PAUSE)
        first = (await client.until("response.done", seconds=120))["response"]
        assert first["status"] in ("completed", "incomplete") and len(client.sound()) > 16_000
        assert first["omni"]["timing"]["speculative"]

        await speak(client, question(1) + PAUSE)
        delta = await client.until("response.output_audio.delta", seconds=120)
        await client.send("omni.playback", item_id=delta["item_id"], played_ms=100)  # and it is spoken over there
        since = len(client.heard)
        await speak(client, question(2) + PAUSE)
        ends = [(await client.until("response.done", seconds=120))["response"] for _ in range(2)]
        second, third = [each for each in ends if each["id"] != first["id"]]
        assert second["omni"]["number"] == 2 and third["omni"]["number"] == 3
        truncated = {each["item_id"] for each in client.of("conversation.item.truncated")}
        assert second["status"] == "cancelled" or truncated == {delta["item_id"]}  # made in time, but not heard
        assert third["status"] in ("completed", "incomplete")
        assert third["usage"]["input_tokens"] > first["usage"]["input_tokens"]  # it remembers
        numbers = [each["response_id"] for each in client.heard[since:] if "response_id" in each]
        assert numbers == sorted(numbers, key=[second["id"], third["id"]].index), "nothing old after the new"
    for response in (first, second, third):
        print(response["omni"]["number"], response["status"], response["omni"]["timing"])


async def test_instructions_are_read_ahead(mini):
    """While the first question is on its way its worker reads what comes before it, and then only the question."""

    def has_read() -> int:
        return sum(each["read"] for each in mini.workers("model"))

    before = await asyncio.to_thread(has_read)
    async with talk(mini.url) as client:
        silent = {"input": {"format": {"rate": 16000}, "turn_detection": None}}
        await client.update(audio=silent, instructions="Be kind, and brief. " * 10, max_output_tokens=8)
        await client.append(question(0))
        await asyncio.to_thread(wait_until, lambda: has_read() > before)
        await client.send("input_audio_buffer.commit")
        await client.send("response.create")
        usage = (await client.until("response.done", seconds=120))["response"]["usage"]
    assert 32 <= usage["input_token_details"]["cached_tokens"] < usage["input_tokens"]
