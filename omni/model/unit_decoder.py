"""LLM hidden states → unit logits, 25 positions per text token: the published SpeechGeneratorCTC.

Non-autoregressive and causal: position j sees the hidden state of token j // 25 and everything before it, so the units
of a prefix never change when more tokens come. The input of token i is the state that *predicted* it (post-norm).
Source: ictnlp/LLaMA-Omni, speech_generator.py; paper section 2.4.
"""

import torch
from torch import Tensor, nn

from omni.model.config import BlockConfig
from omni.model.transformer import Block, GrowingCache, KeyValueCache, rotation


class UnitDecoder(nn.Module):
    """forward(hidden (B, T, D_llm)) → logits (B, 25·T, num_units + 1); the last class is the blank."""

    def __init__(self, config: BlockConfig, llm_width: int, num_units: int, upsample: int) -> None:
        super().__init__()
        self.config = config
        self.upsample = upsample
        self.input_proj = nn.Linear(llm_width, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))  # no norm at the end, as published
        self.output_proj = nn.Linear(config.width, num_units + 1)

    def forward(self, hidden: Tensor, first_token: int = 0, cache: KeyValueCache | None = None) -> Tensor:
        """hidden (B, T, D_llm) of tokens first_token … first_token + T - 1 → logits (B, 25·T, classes)."""
        return self.output_proj(self.states(hidden, first_token, cache))

    def states(self, hidden: Tensor, first_token: int = 0, cache: KeyValueCache | None = None) -> Tensor:
        """As forward, before the output projection: (B, 25·T, D)."""
        x = self.input_proj(hidden).repeat_interleave(self.upsample, dim=1)
        first = first_token * self.upsample
        positions = torch.arange(first, first + x.shape[1], device=x.device)[None]
        return self.run(x, positions, cache)

    def run(self, x: Tensor, positions: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """The blocks over already repeated inputs (B, P, D) at positions (B, P)."""
        turns = rotation(positions, self.config.rope, self.config.head_dim, x.dtype)
        for i, block in enumerate(self.layers):
            x = block(x, turns, cache, i)
        return x

    def new_cache(self) -> GrowingCache:
        return GrowingCache(self.config.num_layers)
