"""A person's microphone that is always on: silence, and what is said, in frames as they would be recorded.

    microphone = Microphone(send)              # send(pcm16) takes a frame
    task = asyncio.create_task(microphone.run())
    began = await microphone.say(pcm16)        # on the loop's clock: when the first sample was spoken
    microphone.sent(began, samples)            # when a sample so far in is under way: its frame has to be full

A frame leaves when its last sample has been spoken; one that is late leaves at once, and the clock goes on.
"""

import asyncio
from collections.abc import Awaitable, Callable

from omni.audio.vad import WINDOW
from omni.audio.wav import SAMPLE_RATE

FRAME = 320  # samples: 20 ms, as the page's
ALIGNED = 2560  # speech begins here, or twice as far in, …: at the beginning of a frame and of the ear's window
assert ALIGNED % FRAME == ALIGNED % WINDOW == 0
SAMPLE_BYTES = 2


class Microphone:
    def __init__(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        self._send = send
        self._waiting: tuple[bytes, asyncio.Future[float]] | None = None  # to be said from the next beginning on
        self._saying = b""

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        start, position = loop.time(), 0
        try:
            while True:
                if self._waiting is not None and position % ALIGNED == 0:
                    (self._saying, began), self._waiting = self._waiting, None
                    if not began.done():
                        began.set_result(start + position / SAMPLE_RATE)
                frame, self._saying = self._saying[: FRAME * SAMPLE_BYTES], self._saying[FRAME * SAMPLE_BYTES :]
                position += FRAME
                await asyncio.sleep(max(0.0, start + position / SAMPLE_RATE - loop.time()))
                await self._send(frame.ljust(FRAME * SAMPLE_BYTES, b"\0"))
        finally:
            if self._waiting is not None:
                self._waiting[1].cancel()

    async def say(self, pcm16: bytes) -> float:
        """int16 LE, mono, 16 kHz. Returns when it begins."""
        began = asyncio.get_running_loop().create_future()
        self._waiting = pcm16, began
        try:
            return await began
        finally:
            if self._waiting is not None and self._waiting[1] is began:  # who asked has left
                self._waiting = None

    @staticmethod
    def sent(began: float, samples: int) -> float:
        """When the frame leaves that ends with this sample, or has it inside."""
        return began + -(-samples // FRAME) * FRAME / SAMPLE_RATE
