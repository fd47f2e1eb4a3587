"""The ears of all live conversations: one network for voice activity, in one thread beside the event loop.

    ear = await hearing.ear()
    probabilities = await hearing.run(ear.push, samples)

A job is at most `windows` windows, a few milliseconds, so that nobody's microphone waits for another's long recording.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from omni.audio import vad

T = TypeVar("T")


class Hearing:
    windows = 32  # about a second of sound a job

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hearing")

    async def ear(self) -> vad.VoiceActivity:
        """For one stream. The first one loads the network."""
        return vad.VoiceActivity(await self.run(vad.load))

    async def run(self, work: Callable[..., T], *args) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
