"""Encoder frames → speech embeddings: the published EncoderProjectorConcat, and what may be added to it by settings.

Source: ictnlp/LLaMA-Omni, speech_projector.py. Our own checkpoint sets `adaptor_context` and `adaptor_tokens`, see
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
    row. With tokens, what comes out are the LLM's own embeddings of the tokens that were heard (see `Tokens`), in
    order, and silence after them, as many as there would be without. With `lengths`, shorter rows of a batch see only
    themselves: a row's own embeddings are what it would get alone (embeddings past its length are meaningless).
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
        self.tokens = Tokens(config.adaptor_tokens, config.llm.width) if config.adaptor_tokens else None

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is not None:
            lengths = lengths // self.window * self.window
            inside = torch.arange(frames.shape[1], device=frames.device) < lengths[:, None]
            frames = frames * inside[..., None]
        x = self.embed(frames, lengths)
        if self.tokens is None:
            return x
        return self.tokens(x, None if lengths is None else lengths // self.window)

    def embed(self, frames: Tensor, lengths: Tensor | None) -> Tensor:
        """As forward, before tokens are read from it."""
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


class Tokens(nn.Module):
    """Embeddings (B, T, D), lengths (B,) or None → (B, T, D): what CTC hears in them, as the LLM's embeddings of it.

    A position hears the token whose embedding, less the mean of all, points most nearly where its own does; or the
    blank.
    Repeats and blanks are dropped, and every row is filled up with `table`'s last embedding, which is silence.
    """

    table: Tensor
    norms: Tensor
    mean: Tensor
    blank: Tensor

    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(num_tokens + 1, width))
        self.register_buffer("norms", torch.ones(num_tokens))  # lengths of the table's embeddings less the mean
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("blank", torch.zeros(width))  # of length 1

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.embed(self.classes(x), lengths)

    def embed(self, heard: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What each position hears (B, T), as `classes` says it → (B, T, D)."""
        return self.table[self.order(heard, lengths)]

    def order(self, heard: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What each position hears (B, T) → the numbers of `table`'s rows (B, T): tokens in order, then silence."""
        num_tokens = len(self.norms)
        if lengths is not None:
            heard = heard.masked_fill(torch.arange(heard.shape[1], device=heard.device) >= lengths[:, None], num_tokens)
        before = torch.nn.functional.pad(heard[:, :-1], (1, 0), value=num_tokens)
        said = (heard != num_tokens) & (heard != before)
        out = torch.full_like(heard, num_tokens)  # the table's last row
        row, _ = said.nonzero(as_tuple=True)
        out[row, (said.cumsum(1) - 1)[said]] = heard[said]
        return out

    def classes(self, x: Tensor) -> Tensor:
        """(B, T, D) → which token each position hears (B, T); the number after the last is the blank."""
        return self.likeness(x).argmax(-1)

    def likeness(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, T, tokens + 1): how nearly each position points where a token does, times its own length."""
        x = x - self.mean
        cosines = (x @ self.table[:-1].T - (x @ self.mean)[..., None]) / self.norms
        return torch.cat((cosines, (x @ self.blank)[..., None]), dim=-1)


def with_tokens(adaptor: dict[str, Tensor], embeddings: Tensor) -> dict[str, Tensor]:
    """An adaptor that ships the ids of its tokens → one that holds their embeddings; others stay as they are."""
    if "tokens.ids" not in adaptor:
        return adaptor
    ids, mean = adaptor.pop("tokens.ids").long(), embeddings.float().mean(0)
    table = embeddings.float()[ids]  # the last id is silence
    norms = (table[:-1] - mean).norm(dim=-1)
    return adaptor | {"tokens.table": table, "tokens.norms": norms, "tokens.mean": mean}
