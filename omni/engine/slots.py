"""Keys and values of every running sequence, in rows made once. A row is a slot; each has a length of its own.

    slots = Slots(config, num_slots=8, max_length=1024, like=llm.norm.weight)
    hidden = llm(embeds, positions, cache=slots.rows([0, 3], starts=[17, 5], num_new=1))

`rows` is a cache as omni.model.transformer describes it: positions start … start + num_new - 1 of each row are written,
everything before them is attended to. Lengths are the caller's; a row freed is simply written over.
"""

import torch
from torch import Tensor

from omni.engine.feeding import feed
from omni.model.config import BlockConfig


class Slots:
    def __init__(
        self,
        config: BlockConfig,
        num_slots: int,
        max_length: int,
        like: Tensor,
        num_layers: int | None = None,
    ) -> None:
        self.max_length = max_length
        num_layers = config.num_layers if num_layers is None else num_layers
        shape = (num_layers, num_slots, config.num_kv_heads, max_length, config.head_dim)
        # On a CPU attention in bfloat16 takes seven times as long as in float32 (8 rows of 200 positions), so that keys
        # and values are float32 there, whatever the weights are.
        device, dtype = like.device, torch.float32 if like.device.type == "cpu" else like.dtype
        # Zeros, not what memory held: a masked NaN is still NaN after attention. On a CPU they cost no memory yet.
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)

    def rows(self, slots: list[int], starts: list[int], num_new: int) -> "Rows":
        return Rows(self, slots, starts, num_new)

    def fixed(self, index: Tensor, starts: Tensor, num_new: int, length: int) -> "FixedRows":
        return FixedRows(self, index, starts, num_new, length)

    def copy(self, source: int, target: int, length: int) -> None:
        """The first `length` positions of one row into another."""
        self.k[:, target, :, :length] = self.k[:, source, :, :length]
        self.v[:, target, :, :length] = self.v[:, source, :, :length]

    def clear(self, slot: int) -> None:
        """After a row went wrong: nothing of it may reach the next one through a mask."""
        self.k[:, slot].zero_()
        self.v[:, slot].zero_()


class Rows:
    """Some slots for one forward call; all layers share the indices and the mask."""

    def __init__(self, slots: Slots, rows: list[int], starts: list[int], num_new: int) -> None:
        assert max(starts) + num_new <= slots.max_length, "a sequence longer than its slot"
        self.slots = slots
        self.length = max(starts) + num_new
        device = slots.k.device
        self.single = rows[0] if len(rows) == 1 else None
        self.view = slice(rows[0], rows[0] + len(rows)) if rows == list(range(rows[0], rows[0] + len(rows))) else None
        self.index, first = feed(rows, device), feed(starts, device)
        self.positions = first[:, None] + torch.arange(num_new, device=device)  # (B, T)
        self.start, self.num_new = starts[0], num_new
        self.mask = self._mask(starts)

    def _mask(self, starts: list[int]) -> Tensor | None:
        same = len(set(starts)) == 1
        if same and (self.num_new == 1 or starts[0] == 0):
            return None
        keys = torch.arange(self.length, device=self.positions.device)
        return (keys <= self.positions[..., None])[:, None]  # (B, 1, T, L)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        all_k, all_v = self.slots.k[layer], self.slots.v[layer]
        k, v = k.to(all_k.dtype), v.to(all_v.dtype)
        if self.single is not None:
            span = slice(self.start, self.start + self.num_new)
            all_k[self.single, :, span] = k[0]
            all_v[self.single, :, span] = v[0]
        else:
            all_k[self.index[:, None], :, self.positions] = k.transpose(1, 2)
            all_v[self.index[:, None], :, self.positions] = v.transpose(1, 2)
        rows = self.view if self.view is not None else self.index
        return all_k[rows, :, : self.length], all_v[rows, :, : self.length], self.mask


class Ragged:
    """Pieces of several rows, of different lengths, one after the other: positions (1, T). Each attends to its own."""

    def __init__(self, parts: list[Rows]) -> None:
        self.parts, self.lengths = parts, [each.num_new for each in parts]
        self.positions = torch.cat([each.positions for each in parts], dim=1)


class FixedRows:
    """As Rows, of tensors (B,) that stay on the device, and of a length that does not depend on them.

    A row may be given twice, with the same start and the same input: both write the same.
    """

    def __init__(self, slots: Slots, index: Tensor, starts: Tensor, num_new: int, length: int) -> None:
        self.slots, self.index, self.length = slots, index, length
        self.positions = starts[:, None] + torch.arange(num_new, device=starts.device)  # (B, T)
        keys = torch.arange(length, device=starts.device)
        self.mask = (keys <= self.positions[..., None])[:, None]  # (B, 1, T, L)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        all_k, all_v = self.slots.k[layer], self.slots.v[layer]
        all_k[self.index[:, None], :, self.positions] = k.transpose(1, 2).to(all_k.dtype)
        all_v[self.index[:, None], :, self.positions] = v.transpose(1, 2).to(all_v.dtype)
        return all_k[:, :, : self.length][self.index], all_v[:, :, : self.length][self.index], self.mask
