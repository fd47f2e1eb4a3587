"""The language model: a Llama from embeddings to post-norm hidden states. Knows nothing of text or speech."""

import torch
from torch import Tensor, nn

from omni.model.config import BlockConfig
from omni.model.transformer import Block, GrowingCache, KeyValueCache, RMSNorm, rotation


class Llama(nn.Module):
    """embed(ids) → forward(embeds, positions, cache) → logits(hidden).

    The hidden state that predicts token i is also what the unit decoder speaks token i from.
    """

    def __init__(self, config: BlockConfig, vocab_size: int, tied_embeddings: bool) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.lm_head = None if tied_embeddings else nn.Linear(config.width, vocab_size, bias=False)

    def embed(self, ids: Tensor) -> Tensor:
        """(…) int64 → (…, D)."""
        return self.embed_tokens(ids)

    def forward(self, embeds: Tensor, positions: Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        """embeds (B, T, D), positions (B, T) → hidden states after the final norm (B, T, D)."""
        if positions is None:
            positions = torch.arange(embeds.shape[1], device=embeds.device)[None]
        turns = rotation(positions, self.config.rope, self.config.head_dim, embeds.dtype)
        x = embeds
        for i, block in enumerate(self.layers):
            x = block(x, turns, cache, i)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, D) → (…, vocabulary)."""
        weight = self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return nn.functional.linear(hidden, weight)

    def new_cache(self) -> GrowingCache:
        return GrowingCache(self.config.num_layers)
