"""Logits of a batch → next tokens, on the device: for each row what omni.model.sampling.choose gives it alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from omni.engine.feeding import feed
from omni.model.sampling import Sampling, draw

TIES = 1024  # candidates kept beyond top_k, for those that score exactly as the last of the k


def choose(logits: Tensor, samplings: Sequence[Sampling], steps: Sequence[int]) -> Tensor:
    """logits (B, V), each row's settings and step → token ids (B,)."""
    tokens = logits.argmax(-1)
    for group in _groups(samplings):
        rows = feed(group, logits.device)
        chosen = [samplings[i] for i in group]
        uniform = feed([draw(samplings[i].seed, steps[i]) for i in group], logits.device, torch.float64)
        tokens[rows] = _sample(logits[rows], chosen, uniform)
    return tokens


def _groups(samplings: Sequence[Sampling]) -> list[list[int]]:
    """Rows that sample, those with a top_k apart from those without: the latter need the whole vocabulary sorted."""
    sampled = [i for i, each in enumerate(samplings) if each.temperature > 0.0]
    few = [i for i in sampled if samplings[i].top_k > 0]
    return [group for group in (few, [i for i in sampled if samplings[i].top_k <= 0]) if group]


def _sample(logits: Tensor, samplings: Sequence[Sampling], uniform: Tensor) -> Tensor:
    def column(values: list[float]) -> Tensor:
        return feed(values, logits.device, torch.float32)[:, None]

    scores, ids = _best(logits.float() / column([each.temperature for each in samplings]), samplings)
    top_p = column([each.top_p for each in samplings])
    probabilities = scores.softmax(-1)
    better = probabilities.cumsum(-1) - probabilities
    dropped = (better >= top_p) & (top_p < 1.0)
    dropped[:, 0] = False
    probabilities = scores.masked_fill(dropped, -torch.inf).softmax(-1)
    reached = (uniform * probabilities.sum(-1).double())[:, None].float()
    index = torch.searchsorted(probabilities.cumsum(-1), reached)
    last = (probabilities > 0).sum(-1, keepdim=True) - 1
    return ids.gather(1, index.minimum(last))[:, 0]


def _best(scaled: Tensor, samplings: Sequence[Sampling]) -> tuple[Tensor, Tensor]:
    """Scores best first, -inf beyond a row's top_k, and their ids; equal scores by id, as a stable sort gives them."""
    vocabulary = scaled.shape[-1]
    largest = max(each.top_k for each in samplings)
    if largest <= 0:
        return scaled.sort(dim=-1, descending=True, stable=True)
    scores, ids = scaled.topk(min(largest + TIES, vocabulary))
    ids = ids.sort(-1).values
    scores, order = scaled.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(1, order)
    last = feed([min(each.top_k, vocabulary) - 1 for each in samplings], scaled.device)[:, None]
    return scores.masked_fill(scores < scores.gather(1, last), -torch.inf), ids
