"""One Llama block, shared by the LLM and the unit decoder: RMSNorm, RoPE, attention, SwiGLU. Knows nothing of tokens.

State comes in by argument: `block(x, rotation, cache, layer)`. A cache is any object with

    extend(layer, k, v) -> (k, v, mask)     k, v (B, H_kv, T, d) in; all keys and values to attend to out, and a mask

where mask is None (causal over T new positions with no past, or everything when T is 1) or a bool (…, T, L), True where
attention is allowed. `GrowingCache` is the simple one; the engine brings its own.

Names are those of Hugging Face's Llama, so that published weights load as they are.
"""

import math
from functools import cache
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from omni.model.config import BlockConfig, RopeConfig


class KeyValueCache(Protocol):
    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]: ...


class GrowingCache:
    """Keys and values of every position so far, by concatenation. Slow, obvious, any batch of equal lengths."""

    def __init__(self, num_layers: int) -> None:
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers

    @property
    def length(self) -> int:
        return 0 if self.layers[0] is None else self.layers[0][0].shape[2]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        past = self.layers[layer]
        num_new = k.shape[2]
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        self.layers[layer] = (k, v)
        if past is None or num_new == 1:
            return k, v, None
        return k, v, torch.ones(num_new, k.shape[2], dtype=torch.bool, device=k.device).tril(k.shape[2] - num_new)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * (x.float() * scale).to(x.dtype)


@cache
def frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """(head_dim / 2,) float32 radians per position; with Llama 3.1's scaling of the slow ones where it is set."""
    inv = 1.0 / (rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim))
    if rope.factor == 1.0:
        return inv
    wavelength = 2 * math.pi / inv
    low, high = rope.low_freq_factor, rope.high_freq_factor
    smooth = ((rope.original_max_positions / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - smooth) * inv / rope.factor + smooth * inv


def rotation(positions: Tensor, rope: RopeConfig, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Positions (B, T) → cos, sin (B, 1, T, head_dim), computed in float32, once per forward for all layers."""
    angles = positions[..., None].float() * frequencies(rope, head_dim).to(positions.device)
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on (B, H, T, d), the halves of a head paired as in Hugging Face's Llama."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.q_proj = nn.Linear(config.width, self.num_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.width, self.num_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.width, self.num_kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.width, bias=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) → q (B, H, T, d), k and v (B, H_kv, T, d), before RoPE."""
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(B, T, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(B, T, self.num_kv_heads, self.head_dim).transpose(1, 2)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """q (B, H, T, d) over k, v (B, H_kv, L, d) → (B, T, D). Causal where mask is None and T > 1."""
        B, _, T, _ = q.shape
        grouped = self.num_kv_heads != self.num_heads
        y = scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None and T > 1, enable_gqa=grouped)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, self.num_heads * self.head_dim))

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], kv: KeyValueCache | None, layer: int) -> Tensor:
        q, k, v = self.project(x)
        q, k = rotate(q, *rotation), rotate(k, *rotation)
        k, v, mask = (k, v, None) if kv is None else kv.extend(layer, k, v)
        return self.attend(q, k, v, mask)


class FeedForward(nn.Module):
    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.ffn_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.ffn_width, bias=False)
        self.down_proj = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Pre-norm attention and feed-forward: (B, T, D) → (B, T, D)."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], kv: KeyValueCache | None, layer: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, kv, layer)
        return x + self.mlp(self.post_attention_layernorm(x))
