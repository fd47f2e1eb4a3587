"""Encoder frames → speech embeddings: the published EncoderProjectorConcat, with optional neighbours.

Source: ictnlp/LLaMA-Omni, speech_projector.py. Our own checkpoint sets `adaptor_context`, see docs/mini.md.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from omni.model.config import OmniConfig


class Adaptor(nn.Module):
    """forward(frames (B, F, D_enc) at 50 Hz) → (B, F // 5, D_llm) at 10 Hz; a rest of F % 5 frames is dropped.

    With context c a window sees c windows on each side as well (zeros beyond the ends):
    linear1 reads (2c + 1) · 5 frames, in time order.
    """

    def __init__(self, config: OmniConfig) -> None:
        super().__init__()
        self.window = config.frames_per_embedding
        self.context = config.adaptor_context
        span = (2 * self.context + 1) * self.window * config.encoder_width
        self.linear1 = nn.Linear(span, config.adaptor_hidden)
        self.linear2 = nn.Linear(config.adaptor_hidden, config.llm.width)

    def forward(self, frames: Tensor) -> Tensor:
        return self.linear2(torch.relu(self.linear1(self.windows(frames))))

    def windows(self, frames: Tensor) -> Tensor:
        """(B, F, D_enc) → (B, F // 5, (2c + 1) · 5 · D_enc)."""
        B, F, D = frames.shape
        T = F // self.window
        x = frames[:, : T * self.window].reshape(B, T, self.window * D)
        if self.context == 0:
            return x
        x = pad(x, (0, 0, self.context, self.context))  # (B, T + 2c, 5·D_enc)
        return torch.cat([x[:, i : i + T] for i in range(2 * self.context + 1)], dim=-1)
