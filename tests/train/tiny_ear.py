"""A Whisper encoder of 16 numbers a frame, with seeded random weights: whisper() for tests."""

import torch

from omni.model.config import EncoderConfig
from omni.model.encoder import Encoder

NUM_MELS, WIDTH = 80, 16


def encoder() -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        made = Encoder(EncoderConfig(NUM_MELS, 300, WIDTH, num_heads=2, num_layers=2))
    return made.eval().requires_grad_(False)
