"""What people say in the tests of live conversations, and an answer of which one hears whose it is."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
from fake_cluster import (
    PROMPT_TOKENS,
    UNITS_PER_TOKEN,
    FakeCluster,
    tone,
)
from realtime_client import RealtimeClient

from omni.audio import wav
from omni.serve.protocol import Tokens, TurnRequest

HELDOUT = Path(__file__).parents[2] / "omni" / "train" / "data" / "heldout"
PUSH_TO_TALK = {"audio": {"input": {"turn_detection": None, "format": {"rate": 16000}}}}
DETECTED = {"audio": {"input": {"format": {"rate": 16000}}}}


def silence(seconds: float) -> bytes:
    return bytes(2 * int(16_000 * seconds))


def speech(name: str = "chitchat-000") -> bytes:
    """A recorded question, int16 at 16 kHz."""
    return wav.to_pcm16(wav.read(HELDOUT / f"{name}.flac"))


def spoken() -> bytes:
    """Speech without a pause at either end."""
    samples = wav.from_pcm16(speech())
    loud = np.flatnonzero(np.abs(samples) > 0.05)
    return wav.to_pcm16(samples[loud[0] : loud[-1]])


def written(text: str, role: str = "user") -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


def samples(pcm16: bytes) -> np.ndarray:
    return np.frombuffer(pcm16, dtype="<i2").astype(int)


async def ask(client: RealtimeClient) -> dict[str, Any]:
    """A whole turn by push-to-talk. Returns its response.done."""
    await client.append(wav.to_pcm16(tone()))
    await client.send("input_audio_buffer.commit")
    await client.send("response.create")
    return await client.until("response.done")


def ended(app) -> dict[str, int]:
    """Turns by outcome; and every turn that started is live or among them."""
    metrics = app.state.registry.metrics
    outcomes = {
        name: int(metrics.ended.labels(name)._value.get()) for name in ("ok", "cancelled", "rejected", "failed")
    }
    assert metrics.started._value.get() == sum(outcomes.values()) + len(app.state.registry.live)
    return outcomes


class ManyVoices(FakeCluster):
    """Every answer has a voice of its own: one value for all its samples. Answers are long, and come token by token."""

    def __init__(self, num_tokens: int = 60) -> None:
        super().__init__()
        self.num_tokens = num_tokens

    async def generate(self, request: TurnRequest) -> AsyncIterator[Tokens]:
        self.requests.append(request)
        unit = len(self.requests)
        try:
            for i in range(self.num_tokens):
                await asyncio.sleep(0)
                finish = "stop" if i + 1 == self.num_tokens else None
                units = (unit,) * UNITS_PER_TOKEN
                yield Tokens(request.epoch, i, (i,), " word", units, finish, num_prompt_tokens=PROMPT_TOKENS)
        finally:
            self.closed.append(request.turn_id)
