"""A cluster without workers: deterministic tokens, units and PCM, and faults on request. For tests of what is above it.

The answer to any question is `WORDS`; every unit lasts one frame, and unit u sounds as 320 samples of value 100 · u.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI

from omni.audio import wav
from omni.serve import errors
from omni.serve.config import ServeConfig
from omni.serve.controller import server_settings
from omni.serve.protocol import ReadRequest, Tokens, TurnRequest
from omni.vocoder.streaming import Chunk, ChunkReply

WORDS = ["I", " am", " a", " fake", ",", " and", " say", " this", " to", " all", "."]
UNITS_PER_TOKEN = 6
PROMPT_TOKENS, CACHED_TOKENS = 17, 5
SAMPLES_PER_FRAME = 320
VOICE = {  # the published vocoder's shape, as config.json tells it
    "num_embeddings": 1000,
    "upsample_rates": [5, 4, 4, 2, 2],
    "upsample_kernel_sizes": [11, 8, 8, 4, 4],
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
}


class FakeCluster:
    def __init__(self) -> None:
        self.requests: list[TurnRequest] = []
        self.closed: list[str] = []  # turns whose token stream was given back
        self.readings: list[ReadRequest] = []  # what was read ahead
        self.reading = 0  # of them, how many are under way
        self.reading_gate: asyncio.Event | None = None  # they wait for it
        self.tokens_sent = 0
        self.vocoded = 0
        self.is_ready = True
        self.worker = "w1"  # who answers
        self.gate: asyncio.Event | None = None  # tokens from number `gate_at` on wait for it
        self.gate_at = 1
        self.error: Exception | None = None  # raised instead of the token number `error_at`, by every worker
        self.error_at = 0

    async def generate(self, request: TurnRequest) -> AsyncIterator[Tokens]:
        self.requests.append(request)
        try:
            wanted = min(len(WORDS), request.sampling.max_new_tokens)
            for number, i in enumerate(range(len(request.forced_tokens), wanted)):
                if self.error is not None and i >= self.error_at:
                    raise self.error
                if self.gate is not None and i >= self.gate_at:
                    await self.gate.wait()
                last = i + 1 == wanted
                finish = None if not last else "stop" if wanted == len(WORDS) else "length"
                made = (i,), WORDS[i], units_of(i), finish
                prompt = {"num_prompt_tokens": PROMPT_TOKENS, "num_cached_tokens": CACHED_TOKENS}
                yield Tokens(request.epoch, number, *made, worker=self.worker, **prompt)
                self.tokens_sent += 1
        finally:
            self.closed.append(request.turn_id)

    async def read(self, request: ReadRequest) -> str:
        self.readings.append(request)
        self.reading += 1
        try:
            if self.reading_gate is not None:
                await self.reading_gate.wait()
            if self.error is not None:
                raise self.error
            return self.worker
        finally:
            self.reading -= 1

    async def vocode(self, turn_id: str, epoch: int, chunk: Chunk) -> ChunkReply:
        self.vocoded += 1
        durations = (1,) * len(chunk.units)
        certain = chunk.units[chunk.skip_frames : chunk.certain_frames(durations)]
        return ChunkReply(chunk.number, sound(certain), durations)

    def suspect(self, kind: str, turn_id: str) -> bool:
        return False

    async def describe(self) -> dict[str, Any]:
        state = "ready" if self.is_ready else "silent"
        workers = [
            {"kind": kind, "id": f"{kind}-0", "node": "here", "pid": 1, "state": state, "slots": 8, "running": 0}
            for kind in ("model", "vocoder")
        ]
        return {"workers": workers, "wanted": {"model": 1, "vocoder": 1}}

    def ready(self) -> bool:
        return self.is_ready


def units_of(i: int) -> tuple[int, ...]:
    return tuple((i * UNITS_PER_TOKEN + k) % 100 for k in range(UNITS_PER_TOKEN))


def sound(units: tuple[int, ...]) -> bytes:
    return np.repeat(np.array(units, dtype="<i2") * 100, SAMPLES_PER_FRAME).astype("<i2").tobytes()


def whole_answer(num_tokens: int = len(WORDS)) -> tuple[str, bytes]:
    """What a listener must have heard in the end."""
    units = tuple(unit for i in range(num_tokens) for unit in units_of(i))
    return "".join(WORDS[:num_tokens]), sound(units)


def lost_worker() -> errors.OmniError:
    return errors.WorkerLost("The worker died.")


def config(directory: Path, **changes: Any) -> ServeConfig:
    (directory / "config.json").write_text(json.dumps(VOICE))
    settings: dict[str, Any] = {"model_name": "fake", "model": str(directory), "vocoder": str(directory)}
    return ServeConfig(**settings | changes)


def tone(seconds: float = 0.5, rate: int = 16_000) -> np.ndarray:
    """A question nobody understands: (S,) float32."""
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def question(seconds: float = 0.5) -> bytes:
    """The bytes of its WAV file."""
    return wav.wav_bytes(wav.to_pcm16(tone(seconds)))


def in_process(app: FastAPI) -> httpx.AsyncClient:
    """HTTP without a socket: every response comes whole."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://omni")


@asynccontextmanager
async def over_tcp(app: FastAPI) -> AsyncIterator[str]:
    """The app under uvicorn on a free port of this machine, in this event loop; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(server_settings(app, app.state.registry.config))
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


async def until(condition, seconds: float = 5.0) -> None:
    """Wait for what another task does; fails loudly when it does not."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (the condition is anybody's, and sets no event)
            await asyncio.sleep(0.005)
