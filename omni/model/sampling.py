"""Logits → next token. Greedy at temperature 0; else temperature, then top-k, then top-p, as Hugging Face's generate.

A choice depends only on (logits, settings, seed, step): another worker that goes on at step i chooses what the first
one would have chosen, and a batch chooses what each row would have chosen alone.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 50  # what the published code gets from generate's default
    max_new_tokens: int = 256
    seed: int = 0


GREEDY = Sampling()


def choose(logits: Tensor, sampling: Sampling, step: int) -> int:
    """logits (V,) → token id. `step` counts the answer's tokens from 0."""
    if sampling.temperature <= 0.0:
        return int(logits.argmax())
    ids, probabilities = survivors(logits, sampling)
    index = torch.searchsorted(probabilities.cumsum(0), draw(sampling.seed, step) * float(probabilities.sum()))
    return int(ids[min(int(index), len(ids) - 1)])


def survivors(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """logits (V,) → the ids that may be chosen, best first, and their probabilities (float32, sum 1)."""
    scaled, ids = (logits.float() / sampling.temperature).sort(descending=True, stable=True)
    if sampling.top_k > 0:
        keep = scaled >= scaled[min(sampling.top_k, len(scaled)) - 1]
        scaled, ids = scaled[keep], ids[keep]
    if sampling.top_p < 1.0:  # drop the tail that starts where the better ones already hold top_p
        probabilities = scaled.softmax(0)
        keep = probabilities.cumsum(0) - probabilities < sampling.top_p
        keep[0] = True
        scaled, ids = scaled[keep], ids[keep]
    return ids, scaled.softmax(0)


def draw(seed: int, step: int) -> float:
    """A uniform number in [0, 1) for one step of one answer."""
    return random.Random(f"{seed}:{step}").random()
