"""Choices are those of transformers' own warpers, reproducible from (seed, step) alone."""

from collections import Counter

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from omni.model.sampling import GREEDY, Sampling, choose, draw, survivors


def theirs(logits: torch.Tensor, settings: Sampling) -> torch.Tensor:
    """Probabilities (V,) after Hugging Face's warpers, in generate's order."""
    scores = TemperatureLogitsWarper(settings.temperature)(None, logits[None].clone())
    if settings.top_k:
        scores = TopKLogitsWarper(settings.top_k)(None, scores)
    if settings.top_p < 1.0:
        scores = TopPLogitsWarper(settings.top_p)(None, scores)
    return scores[0].softmax(-1)


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("top_k", [0, 1, 5, 50, 10_000])
def test_what_may_be_drawn_is_what_transformers_would_draw(temperature, top_p, top_k):
    logits = torch.randn(500) * 3
    settings = Sampling(temperature, top_p, top_k)
    ids, probabilities = survivors(logits, settings)
    ours = torch.zeros(500).scatter(0, ids, probabilities)
    torch.testing.assert_close(ours, theirs(logits, settings), atol=1e-6, rtol=1e-4)


def test_equally_good_tokens_at_the_border_of_top_k_all_stay():
    """As in transformers: the k-th value is the limit, not the k-th place."""
    logits = torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0])
    settings = Sampling(1.0, 1.0, 2)
    ids, _ = survivors(logits, settings)
    assert sorted(ids.tolist()) == theirs(logits, settings).nonzero()[:, 0].tolist() == [0, 1, 2, 3]


def test_one_token_always_survives():
    ids, probabilities = survivors(torch.tensor([0.0, 9.0, 1.0]), Sampling(0.5, 1e-9, 50))
    assert ids.tolist() == [1] and probabilities.tolist() == [1.0]


def test_the_same_seed_and_step_choose_the_same_token():
    logits = torch.randn(100)
    settings = Sampling(1.0, 0.95, 50, seed=7)
    first = [choose(logits, settings, step) for step in range(50)]
    assert first == [choose(logits, settings, step) for step in range(50)]
    assert first != [choose(logits, Sampling(1.0, 0.95, 50, seed=8), step) for step in range(50)]


def test_draws_follow_the_probabilities():
    """3,000 draws over four tokens: every share within four standard deviations."""
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    counts = Counter(choose(probabilities.log(), Sampling(1.0, 1.0, 0, seed=1), step) for step in range(3000))
    for i, p in enumerate(probabilities.tolist()):
        assert abs(counts[i] - 3000 * p) < 4 * (3000 * p * (1 - p)) ** 0.5


def test_greedy_takes_the_best_and_draws_nothing():
    assert choose(torch.tensor([1.0, 5.0, 2.0]), GREEDY, 0) == 1


def test_draws_lie_in_the_unit_interval():
    assert all(0.0 <= draw(seed, step) < 1.0 for seed in range(20) for step in range(20))
