"""The decode step in few fixed shapes, so that a GPU can record it once and replay it without the host's help.

    decoding = Decoding(step, device, max_length, max_tokens, capture=True)
    logits, classes, finite = decoding(slots, starts, steps)    # (B, V), (B, 25), (B,), on the device

Rows are rounded up to a bucket by repeating the first one, which then writes what it writes anyway; keys and values are
read up to a bucketed length under a mask. What differs from step to step, slots, starts and steps of the rows, travels
in one copy from pinned memory, and nothing waits for it. Choosing the token is not recorded: each row has its settings.

Without `capture` the same function runs as it is, on any device: so it is tested on a CPU. Recording and replaying have
not been run on a GPU yet.
"""

import logging
from collections.abc import Callable
from collections.abc import Sequence as Several
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
SHORTEST = 64  # tokens of an answer; the text's length is a multiple of it that grows alike
WARM_UPS = 2  # runs before one is recorded: libraries allocate and choose their kernels then

Step = Callable[[Tensor, int, int], tuple[Tensor, Tensor, Tensor]]


class Decoding:
    """`step(fed (3, B), length, num_tokens)` is what is recorded, once per shape. `shapes` are those met so far."""

    def __init__(self, step: Step, device: torch.device, max_length: int, max_tokens: int, capture: bool) -> None:
        assert not capture or device.type == "cuda", "only a CUDA device records graphs"
        self._step, self._device, self._capture = step, device, capture
        self._max_length, self._max_tokens = max_length, max_tokens
        self._recorded: dict[tuple[int, int, int], _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle() if capture else None
        self.shapes: set[tuple[int, int, int]] = set()

    def __call__(self, slots: Several[int], starts: Several[int], steps: Several[int]) -> tuple[Tensor, Tensor, Tensor]:
        shape = self.shape(len(slots), max(starts) + 1, max(steps) + 1)
        self.shapes.add(shape)
        num_rows, length, num_tokens = shape
        padding = num_rows - len(slots)
        fed = torch.tensor([[*each, *[each[0]] * padding] for each in (slots, starts, steps)])
        if not self._capture:
            given = self._step(fed.to(self._device), length, num_tokens)
        else:
            given = self._replay(shape, fed.pin_memory())
        logits, classes, finite = (each[: len(slots)] for each in given)
        return logits, classes, finite

    def shape(self, num_rows: int, length: int, num_tokens: int) -> tuple[int, int, int]:
        """Rounded up: rows, text positions, answer tokens."""
        rows = next((each for each in ROWS if each >= num_rows), num_rows)
        return rows, _double(4 * SHORTEST, length, self._max_length), _double(SHORTEST, num_tokens, self._max_tokens)

    def _replay(self, shape: tuple[int, int, int], fed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if shape not in self._recorded:
            try:
                self._recorded[shape] = _Graph(self._step, fed.to(self._device), shape, self._pool)
            except RuntimeError as exc:
                logger.warning("The step of shape %s cannot be recorded (%s): steps run as they are.", shape, exc)
                self._capture = False
                return self._step(fed.to(self._device), *shape[1:])
        graph = self._recorded[shape]
        graph.fed.copy_(fed, non_blocking=True)
        graph.replay()
        return graph.given  # overwritten by the next replay, which the stream puts after all that reads it


class _Graph:
    def __init__(self, step: Step, fed: Tensor, shape: tuple[int, int, int], pool: Any) -> None:
        self.fed = fed
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):  # a step run again writes the same keys and values to the same places
                step(fed, *shape[1:])
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            self.given = step(fed, *shape[1:])
        self.replay = graph.replay


def _double(size: int, needed: int, largest: int) -> int:
    while size < needed:
        size *= 2
    return min(size, largest)
