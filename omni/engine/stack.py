"""Blocks of omni.model.transformer, made for serving: the same sums in fewer, larger steps.

    stack = Stack(llm.layers, llm.config, max_length=2048, project=Projecting("float", device))
    hidden = stack(embeds, positions, cache)        # as calling the blocks one after the other
    hidden = stack(side_by_side, rows.positions, Ragged([rows, …]))      # several sequences in one call, (1, T, D)

q, k and v come from one product, gate and up from another (projection.py).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from omni.engine.projection import Projecting
from omni.engine.slots import Ragged
from omni.model.config import BlockConfig, RopeConfig
from omni.model.transformer import Block, KeyValueCache, frequencies

Cache = KeyValueCache | Ragged


class Rotary:
    """RoPE with its angles looked up: rotate(x (B, T, H, d), *rotary(positions (B, T)))."""

    def __init__(self, rope: RopeConfig, head_dim: int, first: int, last: int, like: Tensor) -> None:
        self.first = first
        positions = torch.arange(first, last + 1, dtype=torch.float32)
        angles = positions[:, None] * frequencies(rope, head_dim)
        self.cos = torch.cat((angles.cos(), angles.cos()), dim=-1).to(like.device, like.dtype)
        self.sin = torch.cat((-angles.sin(), angles.sin()), dim=-1).to(like.device, like.dtype)

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(…) → cos and signed sin, (…, 1, d)."""
        index = positions - self.first
        return self.cos[index][..., None, :], self.sin[index][..., None, :]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class FusedBlock:
    def __init__(self, block: Block, config: BlockConfig, project: Projecting) -> None:
        attention, mlp = block.self_attn, block.mlp
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.eps = config.norm_eps
        self.qkv = project([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = project([attention.o_proj])
        self.gate_up = project([mlp.gate_proj, mlp.up_proj])
        self.down = project([mlp.down_proj])
        self.attention_norm = block.input_layernorm.weight
        self.mlp_norm = block.post_attention_layernorm.weight

    def __call__(self, x: Tensor, turns: tuple[Tensor, Tensor], cache: Cache, layer: int) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        qk, v = self.project(x)
        q, k = rotate(qk, *turns).transpose(1, 2).split((self.num_heads, self.num_kv_heads), dim=1)
        return self.finish(x, self._attend(q, k, v.transpose(1, 2), cache, layer).to(x.dtype))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, cache: Cache, layer: int) -> Tensor:
        """q (B, H, T, d), k and v (B, H_kv, T, d), the new ones → (B, T, H · d)."""
        if isinstance(cache, Ragged):
            queries, keys, values = (each.split(cache.lengths, dim=2) for each in (q, k, v))
            pieces = zip(queries, keys, values, cache.parts, strict=True)
            return torch.cat([self._attend(*piece, layer) for piece in pieces], dim=1)
        B, _, T, _ = q.shape
        k, v, mask = cache.extend(layer, k, v)
        if T == 1:  # the heads of a group as positions of one: every kernel can, and keys are read once for all of them
            q = q.reshape(B, self.num_kv_heads, -1, self.head_dim)
            y = scaled_dot_product_attention(q.to(k.dtype), k, v, mask)  # (B, H_kv, H / H_kv, d)
            return y.reshape(B, 1, -1)
        grouped = self.num_kv_heads != self.num_heads
        y = scaled_dot_product_attention(
            q.to(k.dtype), k, v, mask, is_causal=mask is None and T > 1, enable_gqa=grouped
        )
        return y.transpose(1, 2).reshape(B, T, -1)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) → q and k together (B, T, H + H_kv, d), v (B, T, H_kv, d), before RoPE."""
        B, T, D = x.shape
        h = self.qkv(rms_norm(x, (D,), self.attention_norm, self.eps))
        h = h.view(B, T, -1, self.head_dim)
        rotated = self.num_heads + self.num_kv_heads
        return h[:, :, :rotated], h[:, :, rotated:]

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows attention: x and attended (B, T, …) → (B, T, D)."""
        x = x + self.out(attended)
        gate, up = self.gate_up(rms_norm(x, x.shape[-1:], self.mlp_norm, self.eps)).chunk(2, dim=-1)
        return x + self.down(silu(gate) * up)


class Stack:
    """Several blocks. `calls` counts forward calls and `rows` the positions in them, for tests of how cost grows."""

    def __init__(self, blocks: Iterable[nn.Module], config: BlockConfig, max_length: int, project: Projecting) -> None:
        self.blocks = [FusedBlock(block, config, project) for block in blocks if isinstance(block, Block)]
        assert self.blocks, "a stack of no blocks"
        self.rotary = Rotary(config.rope, config.head_dim, 0, max_length - 1, self.blocks[0].attention_norm)
        self.calls = self.rows = 0

    def __call__(self, x: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """x (B, T, D) at positions (B, T) → (B, T, D), without a norm at the end."""
        self.calls, self.rows = self.calls + 1, self.rows + x.shape[0] * x.shape[1]
        turns = self.rotary(positions)
        for layer, block in enumerate(self.blocks):
            x = block(x, turns, cache, layer)
        return x
