"""Log-mel → encoder frames: Whisper's audio encoder, any length up to 30 s. Knows nothing of language.

Source: openai/whisper, model.py; names are Whisper's, so that a Whisper .pt and the published shards load as they are.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from omni.model.config import EncoderConfig


class EncoderAttention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        B, F, D = x.shape
        q, k, v = (
            each(x).view(B, F, self.num_heads, D // self.num_heads).transpose(1, 2)
            for each in (self.query, self.key, self.value)
        )
        return self.out(scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(B, F, D))


class EncoderBlock(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attn = EncoderAttention(width, num_heads)
        self.attn_ln = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.mlp_ln = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.attn_ln(x), mask)
        return x + self.mlp(self.mlp_ln(x))


class Encoder(nn.Module):
    """forward(mel (B, n_mels, F) at 100 Hz, lengths (B,) in mel frames or None) → (B, ceil(F / 2), D) at 50 Hz.

    Positions start at 0 for every input, however short. With `lengths`, shorter rows of a batch see only themselves:
    a row's own frames are what it would get alone (frames past its length are meaningless).
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv1d(config.num_mels, config.width, 3, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, 3, stride=2, padding=1)
        self.positional_embedding: Tensor
        self.register_buffer("positional_embedding", torch.zeros(config.num_positions, config.width))
        self.blocks = nn.ModuleList(EncoderBlock(config.width, config.num_heads) for _ in range(config.num_layers))
        self.ln_post = nn.LayerNorm(config.width)

    def forward(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        x, mask = self.embed(mel, lengths)
        for block in self.blocks:
            x = block(x, mask)
        return self.ln_post(x)

    def embed(self, mel: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What goes into the first block: (B, F/2, D), and the key mask (B, 1, 1, F/2) of a ragged batch."""
        F = (mel.shape[-1] + 1) // 2
        if mel.shape[1] != self.config.num_mels or self.config.num_positions < F:
            raise ValueError(
                f"mel of shape {tuple(mel.shape)}: need (B, {self.config.num_mels}, F) with F up to "
                f"{2 * self.config.num_positions}."
            )
        # In a ragged batch both convolutions must see zeros past a row's end, as their own padding would give.
        inside = 1 if lengths is None else (torch.arange(mel.shape[-1], device=mel.device) < lengths[:, None])[:, None]
        x = gelu(self.conv1(mel * inside))
        x = gelu(self.conv2(x * inside)).transpose(1, 2)
        x = x + self.positional_embedding[:F].to(x.dtype)
        if lengths is None:
            return x, None
        frames = (lengths + 1) // 2
        return x, (torch.arange(F, device=x.device) < frames[:, None])[:, None, None]
