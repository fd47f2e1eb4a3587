"""A function in few fixed shapes, so that a GPU can record it once a shape and replay it without the host's help.

    graphs = Graphs(step, device, record=True)      # step(shape, *inputs) → tensors, all of sizes that shape decides
    graphs.warm_up({(4, 512): [fed], …})            # record them before anybody waits for one
    given = graphs((4, 512), fed)                   # inputs from the host or the device

All shapes share their memory: what one gave is written over by the next call, which the stream puts after all that
reads it. So the largest shape comes first. Without `record` the function runs as it is, on any device: so it is tested
on a CPU. Recording and replaying have not been run on a GPU yet.
"""

import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

WARM_UPS = 2  # runs before one is recorded: libraries allocate and choose their kernels then
SECONDS_PER_LINE = 5.0  # of a log that shows that a start goes on

Function = Callable[..., Sequence[Tensor]]


class Graphs:
    """`shapes` are those met so far, in that order; `recording` turns False where the device could not."""

    def __init__(self, function: Function, device: torch.device, record: bool) -> None:
        assert not record or device.type == "cuda", "only a CUDA device records graphs"
        self.recording, self.shapes = record, dict[Hashable, None]()
        self._function, self._device = function, device
        self._recorded: dict[Hashable, _Graph] = {}
        self._outputs: list[Tensor] = []
        self._pool = torch.cuda.graph_pool_handle() if record else None

    def __call__(self, shape: Hashable, *fed: Tensor) -> Sequence[Tensor]:
        self.shapes[shape] = None
        if self.recording and shape not in self._recorded:
            self._record(shape, fed)
        if shape in self._recorded:
            return self._recorded[shape](*fed)
        return self._function(shape, *(each.to(self._device) for each in fed))

    @torch.inference_mode()
    def warm_up(self, examples: Mapping[Any, Sequence[Tensor]], name: str) -> None:
        """Run each shape once, in this order, as it will be run."""
        started = told = time.monotonic()
        for i, (shape, fed) in enumerate(examples.items(), 1):
            self(shape, *fed)
            now = time.monotonic()
            if now - told >= SECONDS_PER_LINE or i == len(examples):
                told = now
                logger.info("%s: %d of %d shapes are ready after %.1f s", name, i, len(examples), now - started)

    def _record(self, shape: Hashable, fed: Sequence[Tensor]) -> None:
        own = [each.to(self._device, copy=True) for each in fed]
        try:
            self._recorded[shape] = _Graph(lambda: self._function(shape, *own), own, self._room, self._pool)
        except RuntimeError as exc:
            logger.warning("The shape %s cannot be recorded (%s): what is not recorded yet runs as it is.", shape, exc)
            self.recording = False

    def _room(self, given: Sequence[Tensor]) -> list[Tensor]:
        """Where outputs of these sizes go, in memory that all shapes share."""
        self._outputs += [each.new_empty(0) for each in given[len(self._outputs) :]]
        for i, each in enumerate(given):
            if self._outputs[i].numel() < each.numel():
                self._outputs[i] = each.new_empty(each.numel())
        return [room[: each.numel()].view(each.shape) for room, each in zip(self._outputs, given, strict=True)]


class _Graph:
    def __init__(
        self,
        run: Callable[[], Sequence[Tensor]],
        fed: list[Tensor],
        room: Callable[[Sequence[Tensor]], list[Tensor]],
        pool: Any,
    ) -> None:
        self._fed = fed
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):  # run again, the same inputs write the same to the same places
                given = run()
        torch.cuda.current_stream().wait_stream(aside)
        self._given = room(given)
        del given
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            for place, each in zip(self._given, run(), strict=True):
                place.copy_(each)

    def __call__(self, *fed: Tensor) -> list[Tensor]:
        for own, each in zip(self._fed, fed, strict=True):
            own.copy_(each if each.is_cuda else each.pin_memory(), non_blocking=True)
        self._graph.replay()
        return self._given
