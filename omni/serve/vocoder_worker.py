"""The vocoder worker: a Ray Serve deployment that turns chunks of units into PCM, those of several answers together.

Keeps no state between chunks: any worker can make any chunk. One thread computes; while it does, chunks gather.
"""

import asyncio
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from omni.serve import errors
from omni.serve.config import ServeConfig
from omni.vocoder.streaming import Chunk, ChunkError, ChunkReply

Render = Callable[[Sequence[Chunk]], list[ChunkReply | ChunkError]]


class Gathering:
    """The computing thread: renders up to `batch` chunks that gathered while it was busy. Idle, it waits for none."""

    def __init__(self, render: Render, batch: int) -> None:
        self._render, self._batch = render, batch
        self._chunks: queue.SimpleQueue[tuple[Chunk, Future[ChunkReply]] | None] = queue.SimpleQueue()
        self.rendered = self.batches = 0
        self._thread = threading.Thread(target=self._run, name="vocoder", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        return self._chunks.qsize()

    def put(self, chunk: Chunk) -> Future[ChunkReply]:
        reply: Future[ChunkReply] = Future()
        self._chunks.put((chunk, reply))
        return reply

    def stop(self) -> None:
        self._chunks.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._chunks.get()) is not None:
            batch, more = [first], True
            while more and len(batch) < self._batch:
                try:
                    item = self._chunks.get_nowait()
                except queue.Empty:
                    break
                more = item is not None
                if item is not None:
                    batch.append(item)
            self._make([(chunk, reply) for chunk, reply in batch if reply.set_running_or_notify_cancel()])
            if not more:
                return

    def _make(self, batch: list[tuple[Chunk, Future[ChunkReply]]]) -> None:
        if not batch:
            return
        try:
            outcomes: Sequence[ChunkReply | Exception] = self._render([chunk for chunk, _ in batch])
        except Exception as exc:
            outcomes = [exc] * len(batch)
        for (_, reply), outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                reply.set_exception(outcome)
            else:
                reply.set_result(outcome)
        self.rendered += len(batch)
        self.batches += 1


class VocoderWorker:
    """Deployed by launch.py."""

    def __init__(self, config: ServeConfig, load: Callable[[ServeConfig], Render] | None = None) -> None:
        """`load` gives what renders chunks; by default the checkpoint's vocoder."""
        self._config = config
        self._running = 0
        self._gathering = Gathering((load or _load)(config), config.vocoder_batch)

    async def vocode(self, turn_id: str, epoch: int, chunk: Chunk) -> ChunkReply:
        """Cancelling takes the chunk out of the queue."""
        self._running += 1
        try:
            return await asyncio.wrap_future(self._gathering.put(chunk))
        except ChunkError as exc:
            raise errors.Internal(f"turn {turn_id} epoch {epoch}: {exc}") from exc
        finally:
            self._running -= 1

    def load(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "slots": self._config.vocoder_batch,
            "running": self._running,
            "waiting": self._gathering.waiting,
            "answered": self._gathering.rendered,
            "batches": self._gathering.batches,
        }

    async def record_routing_stats(self) -> dict[str, Any]:
        """Serve collects this from every replica and gives it to the controllers' routers."""
        return self.load()

    def check_health(self) -> None:
        if not self._gathering.alive:
            raise errors.WorkerLost("The computing thread ended.")


def _load(config: ServeConfig) -> Render:
    """torch comes in here, in the replica only: the process that deploys stays light."""
    import torch

    from omni.serve import arithmetic
    from omni.vocoder import checkpoint, fairseq_backend
    from omni.vocoder.code_hifigan import CodeHiFiGAN
    from omni.vocoder.recorded import Recorded
    from omni.vocoder.render import render, warm_up

    torch.set_num_threads(config.vocoder_threads)
    device = "cuda" if config.vocoder_gpus > 0 else "cpu"
    where = config.here().vocoder
    vocoder: Any
    if config.vocoder_backend == "own":
        vocoder = checkpoint.load(where, device, arithmetic.dtype(config.vocoder_dtype, device))
    else:
        vocoder = fairseq_backend.load(where, device)
    if device == "cuda" and isinstance(vocoder, CodeHiFiGAN):
        vocoder = Recorded(vocoder, config.vocoder_batch)
        vocoder.warm_up()
    warm_up(vocoder)
    return lambda chunks: render(vocoder, chunks)
