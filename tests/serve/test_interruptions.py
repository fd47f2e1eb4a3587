"""Speech over an answer, as fast as it is spoken: what stops it, what does not, and how soon the listener has silence.

pytest -s tests/serve/test_interruptions.py      # prints the times; what is asserted are orders
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from fake_cluster import config, over_tcp, until
from realtime_client import talk
from talking import DETECTED, ManyVoices, silence, spoken, written

from omni.audio import wav
from omni.serve.controller import make_app
from omni.serve.realtime_client import RealtimeSession, Sound, SpeechStarted, Started, connect_realtime

FRAME = 320  # samples a loudspeaker takes at once: 20 ms
SHORT_SILENCE = {"audio": {"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 200}}}}


class Loudspeaker:
    """Takes a frame every 20 ms of what it was given, and keeps what it played: (when it began, its first sample)."""

    def __init__(self) -> None:
        self.buffer = np.zeros(0, "<i2")
        self.played: list[tuple[float, int]] = []

    def put(self, pcm16: bytes) -> None:
        self.buffer = np.concatenate([self.buffer, np.frombuffer(pcm16, "<i2")])

    def flush(self) -> None:
        self.buffer = self.buffer[:0]

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        while True:
            frame, self.buffer = self.buffer[:FRAME], self.buffer[FRAME:]
            self.played.append((loop.time(), int(frame[0]) if len(frame) else 0))
            await asyncio.sleep(start + 0.02 * len(self.played) - loop.time())

    @property
    def last(self) -> int:
        return self.played[-1][1] if self.played else 0

    def silent_since(self, when: float) -> float:
        """When the first frame without sound began, from then on."""
        return next(at for at, value in self.played if at >= when and value == 0)


class Ears:
    """Follows the client's events: plays what comes, stops when told to."""

    def __init__(self, session: RealtimeSession) -> None:
        self.session, self.speaker = session, Loudspeaker()
        self.stops: list[float] = []
        self.answers = 0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        async for event in self.session:
            if isinstance(event, Sound):
                self.speaker.put(event.pcm16)
            elif isinstance(event, SpeechStarted):
                self.stops.append(loop.time())
                self.speaker.flush()
            elif isinstance(event, Started):
                self.answers += 1


@asynccontextmanager
async def listening(session: RealtimeSession) -> AsyncIterator[Ears]:
    ears = Ears(session)
    tasks = [asyncio.create_task(ears.run()), asyncio.create_task(ears.speaker.run())]
    try:
        yield ears
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def speak(session: RealtimeSession, pcm16: bytes) -> float:
    """20 ms every 20 ms, as a microphone does. Returns when its first sample was there."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    for i in range(0, len(pcm16), 2 * FRAME):
        await asyncio.sleep(start + i / 32_000 + 0.02 - loop.time())  # a portion leaves when it was recorded
        await session.append(pcm16[i : i + 2 * FRAME])
    return start


async def test_ten_interruptions_in_real_time(tmp_path):
    """Each stops the sound of the answer before it for good; the answers are heard in their order."""
    cluster = ManyVoices(num_tokens=200)
    app, rng = make_app(config(tmp_path), cluster), random.Random(3)
    onsets, voice, last = [], spoken()[: 2 * 8_000], 0
    async with (
        over_tcp(app) as url,
        connect_realtime(url, settings=SHORT_SILENCE) as session,
        listening(session) as ears,
    ):
        for number in range(1, 12):
            onsets.append(await speak(session, voice + silence(0.4)))
            await until(lambda: ears.answers == number and ears.speaker.last > last, seconds=20)  # noqa: B023
            last = ears.speaker.last
            await asyncio.sleep(rng.uniform(0.0, 0.2))
        heard = [value for _, value in ears.speaker.played if value]
        assert heard == sorted(heard) and len(set(heard)) == 11
        assert len(ears.stops) == 11
        stops, onsets = ears.stops[1:], onsets[1:]
        silences = [ears.speaker.silent_since(at) for at in stops]
        assert all(onset < stop <= quiet for onset, stop, quiet in zip(onsets, stops, silences, strict=True))
    for name, since in (("the first sound of speech", onsets), ("speech_started arrived", stops)):
        late = sorted(1000 * (quiet - at) for quiet, at in zip(silences, since, strict=True))
        print(f"silence after {name}: median {late[len(late) // 2]:.0f} ms, longest {late[-1]:.0f} ms")
    await until(lambda: not app.state.registry.live)


def knock() -> bytes:
    """A quiet room, and a knock of 25 ms in which voice activity finds one window of speech."""
    samples, t = np.random.default_rng(0).normal(0, 1e-3, 24_000), np.arange(400)
    samples[8_208:8_608] += 0.8 * np.sin(2 * np.pi * 200 * t / 16_000) * np.exp(-t / 100)
    return wav.to_pcm16(samples.astype(np.float32))


@pytest.mark.parametrize("speech_ms", [0, None], ids=["any window", "the default"])
async def test_a_knock_does_not_interrupt(tmp_path, speech_ms):
    """Unless the session says that the shortest sound does."""
    cluster = ManyVoices(num_tokens=2_000)
    app = make_app(config(tmp_path, audio_ahead=1.0), cluster)
    async with over_tcp(app) as url, talk(url) as client:
        await client.update(**DETECTED, omni={"speech_ms": speech_ms})
        await client.send("conversation.item.create", item=written("Tell me a story."))
        await client.send("response.create")
        await client.until("response.output_audio.delta")
        await client.append(knock(), portion=640)
        await client.update()
        stopped = [
            each["type"] for each in client.heard if each["type"] in ("response.done", "conversation.item.truncated")
        ]
        started = client.of("input_audio_buffer.speech_started")
        assert len(started) == (speech_ms == 0) and stopped == ["response.done"] * (speech_ms == 0)
        if speech_ms is None:
            await client.append(spoken(), portion=640)
            done = await client.until("response.done")
            assert done["response"]["status_details"]["reason"] == "turn_detected"
