"""Blocks of omni.model.transformer, made for serving: the same sums in fewer, larger steps.

    stack = Stack(llm.layers, llm.config, max_length=2048)
    hidden = stack(embeds, positions, cache)        # as calling the blocks one after the other

q, k and v come from one product, gate and up from another. On a CPU the weights are packed once, in the layout that the
processor's matrix kernels read (measured: half the time of an unpacked product of 2 to 100 rows); or kept in 8 bits,
each row of the input scaled by itself, so that a row's result does not depend on its neighbours.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from omni.model.config import BlockConfig, RopeConfig
from omni.model.transformer import Block, KeyValueCache, frequencies

Projection = Callable[[Tensor], Tensor]
WEIGHTS = ("float", "int8")
HIGHEST = 127.0  # of an 8-bit weight or input


def project(layers: Sequence[nn.Linear], weights: str = "float") -> Projection:
    """Linear layers over the same input → one product, their outputs side by side."""
    weight = layers[0].weight if len(layers) == 1 else torch.cat([each.weight for each in layers])
    bias = None if layers[0].bias is None else torch.cat([each.bias for each in layers])
    if weights == "int8":
        return _int8(weight, bias)
    if weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
        return _packed(weight, bias)
    _share(weight, layers)
    return lambda x: linear(x, weight, bias)


def _packed(weight: Tensor, bias: Tensor | None) -> Projection:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    product = torch.ops.mkldnn._linear_pointwise
    return lambda x: product(x, packed, bias, "none", [], "")


def _share(weight: Tensor, layers: Sequence[nn.Linear]) -> None:
    """The layers become views of the one weight: a large model is on a GPU only once."""
    for layer, own in zip(layers, weight.split([len(each.weight) for each in layers]), strict=True):
        layer.weight.data = own


def _int8(weight: Tensor, bias: Tensor | None) -> Projection:
    """8-bit weights, a scale per output; 8-bit inputs, a scale per row. CPU only."""
    assert weight.device.type == "cpu", "8-bit weights are for a CPU"
    weight = weight.float()
    scales = (weight.abs().amax(1) / HIGHEST).clamp(min=1e-12)
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    engine, torch.backends.quantized.engine = torch.backends.quantized.engine, "fbgemm"  # the one with this product
    try:
        packed = torch.ops.quantized.linear_prepack(torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8))
    finally:
        torch.backends.quantized.engine = engine
    product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32

    def run(x: Tensor) -> Tensor:
        scale = x.float().abs().amax(-1, keepdim=True).clamp(min=1e-12)
        y = product(x.float() / scale, 1 / HIGHEST, 128, packed) * scale
        return (y if bias is None else y + bias).to(x.dtype)

    return run


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
    def __init__(self, block: Block, config: BlockConfig, weights: str) -> None:
        attention, mlp = block.self_attn, block.mlp
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.eps = config.norm_eps
        self.qkv = project([attention.q_proj, attention.k_proj, attention.v_proj], weights)
        self.out = project([attention.o_proj], weights)
        self.gate_up = project([mlp.gate_proj, mlp.up_proj], weights)
        self.down = project([mlp.down_proj], weights)
        self.attention_norm = block.input_layernorm.weight
        self.mlp_norm = block.post_attention_layernorm.weight

    def __call__(self, x: Tensor, turns: tuple[Tensor, Tensor], cache: KeyValueCache, layer: int) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        B, T, _ = x.shape
        qk, v = self.project(x)
        q, k = rotate(qk, *turns).transpose(1, 2).split((self.num_heads, self.num_kv_heads), dim=1)
        k, v, mask = cache.extend(layer, k, v.transpose(1, 2))
        if T == 1:  # the heads of a group as positions of one: every kernel can, and keys are read once for all of them
            q = q.reshape(B, self.num_kv_heads, -1, self.head_dim)
            y = scaled_dot_product_attention(q.to(k.dtype), k, v, mask)  # (B, H_kv, H / H_kv, d)
            return self.finish(x, y.reshape(B, 1, -1).to(x.dtype))
        grouped = self.num_kv_heads != self.num_heads
        y = scaled_dot_product_attention(
            q.to(k.dtype), k, v, mask, is_causal=mask is None and T > 1, enable_gqa=grouped
        )
        return self.finish(x, y.transpose(1, 2).reshape(B, T, -1).to(x.dtype))

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

    def __init__(self, blocks: Iterable[nn.Module], config: BlockConfig, max_length: int, weights: str) -> None:
        self.blocks = [FusedBlock(block, config, weights) for block in blocks if isinstance(block, Block)]
        assert self.blocks, "a stack of no blocks"
        self.rotary = Rotary(config.rope, config.head_dim, 0, max_length - 1, self.blocks[0].attention_norm)
        self.calls = self.rows = 0

    def __call__(self, x: Tensor, positions: Tensor, cache: KeyValueCache) -> Tensor:
        """x (B, T, D) at positions (B, T) → (B, T, D), without a norm at the end."""
        self.calls, self.rows = self.calls + 1, self.rows + x.shape[0] * x.shape[1]
        turns = self.rotary(positions)
        for layer, block in enumerate(self.blocks):
            x = block(x, turns, cache, layer)
        return x
