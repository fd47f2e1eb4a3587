"""Encoder frames → speech embeddings: the published EncoderProjectorConcat, with optional neighbours and blocks.

Source: ictnlp/LLaMA-Omni, speech_projector.py. Our own checkpoint sets `adaptor_context` and `adaptor_blocks`, see
docs/mini.md.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from omni.model.config import OmniConfig
from omni.model.transformer import Block, rotation


class Adaptor(nn.Module):
    """forward(frames (B, F, D_enc) at 50 Hz, lengths (B,) in frames or None) → (B, F // 5, D_llm) at 10 Hz.

    A rest of F % 5 frames is dropped. With context c a window sees c windows on each side as well (zeros beyond the
    ends): linear1 reads (2c + 1) · 5 frames, in time order. With blocks, every embedding then sees all others of its
    row. With `lengths`, shorter rows of a batch see only themselves: a row's own embeddings are what it would get alone
    (embeddings past its length are meaningless).
    """

    def __init__(self, config: OmniConfig) -> None:
        super().__init__()
        self.window = config.frames_per_embedding
        self.context = config.adaptor_context
        self.blocks = config.adaptor_blocks
        span = (2 * self.context + 1) * self.window * config.encoder_width
        self.linear1 = nn.Linear(span, config.adaptor_hidden)
        self.linear2 = nn.Linear(config.adaptor_hidden, config.llm.width)
        blocks = self.blocks
        self.layers = nn.ModuleList([Block(blocks) for _ in range(blocks.num_layers)] if blocks else [])

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is not None:
            lengths = lengths // self.window * self.window
            inside = torch.arange(frames.shape[1], device=frames.device) < lengths[:, None]
            frames = frames * inside[..., None]
        x = self.linear2(torch.relu(self.linear1(self.windows(frames))))
        if self.blocks is None:
            return x
        positions = torch.arange(x.shape[1], device=x.device)[None]
        turns = rotation(positions, self.blocks.rope, self.blocks.head_dim, x.dtype)
        whole = torch.full((1,), frames.shape[1], device=x.device) if lengths is None else lengths
        seen = BothWays((positions < (whole // self.window)[:, None])[:, None, None])
        for i, block in enumerate(self.layers):
            x = block(x, turns, seen, i)
        return x

    def windows(self, frames: Tensor) -> Tensor:
        """(B, F, D_enc) → (B, F // 5, (2c + 1) · 5 · D_enc)."""
        B, F, D = frames.shape
        T = F // self.window
        x = frames[:, : T * self.window].reshape(B, T, self.window * D)
        if self.context == 0:
            return x
        x = pad(x, (0, 0, self.context, self.context))  # (B, T + 2c, 5·D_enc)
        return torch.cat([x[:, i : i + T] for i in range(2 * self.context + 1)], dim=-1)


class BothWays:
    """No cache at all: every position attends to all that `mask` (B, 1, 1, T) allows, the later ones too."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        return k, v, self.mask
