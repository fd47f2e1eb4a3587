"""Whoever asked for an answer: they may leave at any moment, or be told to wait no longer. Knows no wire.

event = await asker.unless_gone(work, seconds)    # work is cancelled the moment the asker leaves
asker.interrupt(Cancelled("The client left."))    # from elsewhere
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from omni.serve.errors import DeadlineExceeded, OmniError

T = TypeVar("T")
FAREWELL_SECONDS = 2.0  # for the last bytes to a client, and for cancelled work to give back what it holds


class Asker:
    def __init__(self) -> None:
        self.bytes_in = self.bytes_out = 0
        self._interrupted: asyncio.Future[OmniError] = asyncio.get_running_loop().create_future()

    async def unless_gone(self, work: Awaitable[T], seconds: float | None = None) -> T:
        """The work's result; or its cancellation and an error: the client left, the turn was stopped, time is up."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task, self._interrupted), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if self._interrupted.done():
                raise self._interrupted.result()
            raise DeadlineExceeded(f"No progress within {seconds:g} s.")
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,), timeout=FAREWELL_SECONDS)

    def interrupt(self, error: OmniError) -> None:
        """Stop what waits in `unless_gone`, now and from now on."""
        if not self._interrupted.done():
            self._interrupted.set_result(error)

    def forget_interruption(self) -> None:
        self._interrupted = asyncio.get_running_loop().create_future()
