"""The decode step in few shapes, so that a GPU can record it (omni/graphs.py).

    decoding = Decoding(step, device, max_rows, max_length, max_tokens, capture=True)
    decoding.warm_up()                                          # all shapes, before the first question
    logits, classes, finite = decoding(slots, starts, steps)    # (B, V), (B, 25), (B,), on the device

Rows are rounded up to a bucket by repeating the first one, which then writes what it writes anyway; keys and values are
read up to a bucketed length under a mask. What differs from step to step, slots, starts and steps of the rows, travels
in one copy from pinned memory, and nothing waits for it. Choosing the token is not recorded: each row has its settings.
"""

from collections.abc import Callable
from collections.abc import Sequence as Several
from itertools import product

import torch
from torch import Tensor

from omni.graphs import Graphs

ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
MORE_ROWS = 64  # beyond these, multiples of it
SHORTEST = 64  # tokens of an answer; the text's length is a multiple of it that grows alike

Step = Callable[[Tensor, int, int], tuple[Tensor, Tensor, Tensor]]
Shape = tuple[int, int, int]


class Decoding:
    """`step(fed (3, B), length, num_tokens)` is what is recorded, once per shape."""

    def __init__(
        self, step: Step, device: torch.device, max_rows: int, max_length: int, max_tokens: int, capture: bool
    ) -> None:
        self.graphs = Graphs(lambda shape, fed: step(fed, *shape[1:]), device, capture)
        self._max_rows, self._max_length, self._max_tokens = max_rows, max_length, max_tokens

    def __call__(self, slots: Several[int], starts: Several[int], steps: Several[int]) -> tuple[Tensor, Tensor, Tensor]:
        shape = self.shape(len(slots), max(starts) + 1, max(steps) + 1)
        padding = shape[0] - len(slots)
        fed = torch.tensor([[*each, *[each[0]] * padding] for each in (slots, starts, steps)])
        logits, classes, finite = (each[: len(slots)] for each in self.graphs(shape, fed))
        return logits, classes, finite

    def shape(self, num_rows: int, length: int, num_tokens: int) -> Shape:
        """Rounded up: rows, text positions, answer tokens."""
        rows = next((each for each in ROWS if each >= num_rows), -(-num_rows // MORE_ROWS) * MORE_ROWS)
        lengths, tokens = _doubled(4 * SHORTEST, self._max_length), _doubled(SHORTEST, self._max_tokens)
        return rows, next(n for n in lengths if n >= length), next(n for n in tokens if n >= num_tokens)

    def every_shape(self) -> list[Shape]:
        """All that a step can meet, the largest first."""
        rows = sorted({self.shape(b, 1, 1)[0] for b in range(1, self._max_rows + 1)}, reverse=True)
        lengths, tokens = _doubled(4 * SHORTEST, self._max_length), _doubled(SHORTEST, self._max_tokens)
        return list(product(rows, lengths[::-1], tokens[::-1]))

    def warm_up(self) -> None:
        """Only before there is a sequence: it writes to the first position of slot 0."""
        fed = {shape: [torch.zeros(3, shape[0], dtype=torch.int64)] for shape in self.every_shape()}
        self.graphs.warm_up(fed, "decode step")


def _doubled(size: int, largest: int) -> list[int]:
    """size, twice, four times … and the largest."""
    sizes = []
    while size < largest:
        sizes.append(size)
        size *= 2
    return [*sizes, largest]
