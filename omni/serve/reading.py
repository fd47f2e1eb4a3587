"""A model worker reads a conversation while its next question is still being said, so that only the question is left.

    reading = Reading(cluster, messages, prefer=session.worker)    # at work at once
    worker = reading.stop()                                        # who has read, or was to: the question goes there
    await reading.ended()

A favour: whatever goes wrong with it, the question's own turn will tell.
"""

import asyncio
import logging
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from omni.serve.cluster import Cluster
from omni.serve.errors import OmniError
from omni.serve.protocol import Message, ReadRequest

logger = logging.getLogger(__name__)


class Reading:
    def __init__(
        self, cluster: Cluster, messages: Sequence[Message], prefer: str, seconds: float, adaptor: str = ""
    ) -> None:
        self._worker = prefer
        request = ReadRequest(uuid.uuid4().hex, tuple(messages), prefer, adaptor)
        self._task = asyncio.create_task(self._run(cluster, request, seconds), name=f"reading {request.turn_id}")

    def stop(self) -> str:
        """No more of it. Returns the worker that has read all; else the one that was preferred before."""
        self._task.cancel()
        return self._worker

    async def ended(self) -> None:
        await asyncio.gather(self._task, return_exceptions=True)

    def when_ended(self, callback: Callable[["Reading"], Any]) -> None:
        self._task.add_done_callback(lambda task: callback(self))

    async def _run(self, cluster: Cluster, request: ReadRequest, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                self._worker = await cluster.read(request)
        except (OmniError, TimeoutError) as exc:
            logger.info("nothing is read ahead: %s", exc)
