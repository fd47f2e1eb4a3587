"""The unit decoder, one text token at a time: 25 new positions over what is remembered. Equal to the reference path.

    speech = Speech(omni.unit_decoder, num_slots=8, max_tokens=256, project=project)
    logits = speech(slots=[0, 3], states (2, 1, D), first_tokens=[12, 4])       # (2, 1, 25, classes)

The 25 copies of a token are the same before RoPE. So the first block's q, k and v are computed and kept once per token,
and RoPE, which only sees differences, is applied to q: the query of copy a looks at copy c of a token t as a query
turned by a - c more positions looks at the token's first copy. There are 49 such differences, hence

    weight of token t for copy a  =  sum over c of exp(score(a - c, t))  =  a sum over 25 of the 49 differences

49 scores a token instead of 625, and in the first block a 25th of the keys and values. From the second block on, the
copies differ, and attention is what it is anywhere.
"""

import torch
from torch import Tensor

from omni.engine.projection import Projecting
from omni.engine.slots import FixedRows, Rows, Slots
from omni.engine.stack import FusedBlock, Rotary, Stack, rotate
from omni.model.unit_decoder import UnitDecoder


class Speech:
    def __init__(self, decoder: UnitDecoder, num_slots: int, max_tokens: int, project: Projecting) -> None:
        config, self.upsample = decoder.config, decoder.upsample
        like = decoder.input_proj.weight
        positions = max_tokens * self.upsample
        self.input = project([decoder.input_proj])
        self.output = project([decoder.output_proj])
        self.first = FusedBlock(decoder.layers[0], config, project)  # type: ignore[arg-type]
        self.rest = Stack(list(decoder.layers)[1:], config, positions, project) if config.num_layers > 1 else None
        self.tokens = Slots(config, num_slots, max_tokens, like, num_layers=1)
        self.positions = Slots(config, num_slots, positions, like, config.num_layers - 1)
        self.rotary = Rotary(config.rope, config.head_dim, 1 - self.upsample, positions, like)
        self.shifts = torch.arange(1 - self.upsample, self.upsample, device=like.device)  # a - c: -24 … 24
        copies = torch.arange(self.upsample, device=like.device)[:, None]
        self.window = ((self.shifts <= copies) & (self.shifts > copies - self.upsample)).double()  # (25, 49)

    def __call__(self, slots: list[int], states: Tensor, first_tokens: list[int]) -> Tensor:
        """States (B, n, D_llm) of each row's tokens from first_tokens[b] on → logits (B, n, 25, classes)."""
        n = states.shape[1]
        starts = [first * self.upsample for first in first_tokens]
        tokens = self.tokens.rows(slots, first_tokens, n)
        return self.run(states, tokens, self.positions.rows(slots, starts, n * self.upsample))

    def fixed(self, index: Tensor, states: Tensor, first_tokens: Tensor, num_tokens: int) -> Tensor:
        """As a call, of tensors (B,): all that is looked at is as long as num_tokens."""
        n, upsample = states.shape[1], self.upsample
        tokens = self.tokens.fixed(index, first_tokens, n, num_tokens)
        positions = self.positions.fixed(index, first_tokens * upsample, n * upsample, num_tokens * upsample)
        return self.run(states, tokens, positions)

    def run(self, states: Tensor, tokens: Rows | FixedRows, positions: Rows | FixedRows) -> Tensor:
        B, n, _ = states.shape
        x = self.input(states)
        attended = self._attend_to_tokens(x, tokens)  # (B, 25·n, D)
        x = self.first.finish(x.repeat_interleave(self.upsample, dim=1), attended)
        if self.rest is not None:
            x = self.rest(x, positions.positions, positions)
        return self.output(x).view(B, n, self.upsample, -1)

    def forget(self, slot: int) -> None:
        self.tokens.clear(slot)
        self.positions.clear(slot)

    def _attend_to_tokens(self, x: Tensor, rows: Rows | FixedRows) -> Tensor:
        """The first block's attention: (B, n, D), the same for all copies → (B, 25·n, D)."""
        B, n, _ = x.shape
        block, d = self.first, self.first.head_dim
        qk, v = block.project(x)
        q, k = qk.split((block.num_heads, block.num_kv_heads), dim=2)
        starts = rows.positions * self.upsample  # (B, n): each token's first position
        k, v, _ = rows.extend(0, rotate(k, *self.rotary(starts)).transpose(1, 2), v.transpose(1, 2))
        q = rotate(q[:, :, None], *self.rotary(starts[..., None] + self.shifts))  # (B, n, 49, H, d)
        q = q.permute(0, 3, 1, 2, 4).reshape(B, block.num_heads, -1, d)  # (B, H, n·49, d)
        scores = (q.to(k.dtype) @ k.transpose(-1, -2)).view(B, -1, n, len(self.shifts), k.shape[2]).double() * d**-0.5
        scores = scores.masked_fill(self._ahead(rows.positions, k.shape[2]), -torch.inf)
        # In double precision: a window far below the best of all 49 scores must still have a sum.
        weights = self.window @ (scores - scores.amax((-1, -2), keepdim=True)).exp()  # (B, H, n, 25, L)
        weights = (weights / weights.sum(-1, keepdim=True)).to(v.dtype).flatten(2, 3)
        return (weights @ v).transpose(1, 2).reshape(B, n * self.upsample, -1).to(x.dtype)

    def _ahead(self, tokens: Tensor, length: int) -> Tensor:
        """(B, n) → (B, 1, n, 49, L): later tokens, and later copies of the token itself."""
        ahead = torch.arange(length, device=tokens.device) - tokens[..., None, None]  # (B, n, 1, L)
        return ((ahead > 0) | ((ahead == 0) & (self.shifts[:, None] < 0)))[:, None]
