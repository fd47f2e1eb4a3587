"""CodeHiFiGAN's generator in few shapes, so that a GPU can record it (omni/graphs.py). Stands in for the vocoder.

    vocoder = Recorded(checkpoint.load(directory, "cuda"), batch=8)
    vocoder.warm_up()
    replies = render(vocoder, chunks)

render() already rounds widths up to WIDTH_STEP frames and fills open windows; here rows are rounded up as well, by
repeating the first one. What is none of these shapes runs as ever: an answer so short that it is one chunk, whose rows
end before the width does, units that last longer than a frame (offline), and windows wider than any planned chunk.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from omni.graphs import Graphs
from omni.vocoder.code_hifigan import CodeHiFiGAN
from omni.vocoder.render import WIDTH_STEP

WIDEST = 192  # frames: 80 units of 1.7 frames and the context on both sides, 178


class Recorded:
    def __init__(self, vocoder: CodeHiFiGAN, batch: int) -> None:
        self.config: Mapping[str, Any] = vocoder.config
        self._vocoder, self._device = vocoder, next(vocoder.parameters()).device
        self._rows = [2**i for i in range(batch.bit_length()) if 2**i < batch] + [batch]
        self.graphs = Graphs(self._generate, self._device, record=self._device.type == "cuda")

    def parameters(self) -> Iterator[Tensor]:
        return self._vocoder.parameters()

    def durations(self, units: Tensor, lengths: Tensor) -> Tensor:
        return self._vocoder.durations(units, lengths)

    def __call__(self, units: Tensor, durations: Tensor, lengths: Tensor) -> Tensor:
        """units (B, F), each of one frame, all rows full → samples (B, S); anything else as the vocoder does it."""
        B, F = units.shape
        rows = next((each for each in self._rows if each >= B), None)
        if rows is None or F % WIDTH_STEP or not 0 < F <= WIDEST or not _full(durations, lengths):
            return self._vocoder(units, durations, lengths)
        (samples,) = self.graphs((rows, F), torch.cat((units, units[:1].expand(rows - B, F))))
        return samples[:B]

    def every_shape(self) -> list[tuple[int, int]]:
        """Rows and frames, the largest first."""
        widths = range(WIDEST - WIDEST % WIDTH_STEP, 0, -WIDTH_STEP)
        return [(rows, width) for rows in reversed(self._rows) for width in widths]

    def warm_up(self) -> None:
        self.graphs.warm_up({each: [torch.zeros(each, dtype=torch.long)] for each in self.every_shape()}, "vocoder")

    def _generate(self, shape: tuple[int, int], frames: Tensor) -> tuple[Tensor]:
        return (self._vocoder.vocode(self._vocoder.dict(frames).transpose(1, 2)),)


def _full(durations: Tensor, lengths: Tensor) -> bool:
    """One question to the device, which has nothing else to do: the batch has just been sent to it."""
    return bool((durations == 1).all() & (lengths == durations.shape[1]).all())
