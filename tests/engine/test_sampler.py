"""A batch chooses what each of its rows would have chosen alone."""

import pytest
import torch

from omni.engine import sampler
from omni.model import sampling
from omni.model.sampling import Sampling

SETTINGS = [
    Sampling(),
    Sampling(temperature=0.7),
    Sampling(temperature=1.3, top_p=0.8, seed=3),
    Sampling(temperature=1.0, top_k=0, top_p=0.9, seed=4),
    Sampling(temperature=1.0, top_k=0, seed=5),
    Sampling(temperature=0.5, top_k=1, seed=6),
    Sampling(temperature=2.0, top_k=5, top_p=0.1, seed=7),
    Sampling(temperature=1.0, top_k=10_000, seed=8),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_batch_chooses_as_its_rows_alone(dtype):
    """Every mix of settings over many steps; bfloat16 logits have many ties."""
    generator = torch.Generator().manual_seed(0)
    for step in range(40):
        logits = (torch.randn(len(SETTINGS), 300, generator=generator) * 3).to(dtype)
        alone = [sampling.choose(row, each, step) for row, each in zip(logits, SETTINGS, strict=True)]
        assert sampler.choose(logits, SETTINGS, [step] * len(SETTINGS)).tolist() == alone


def test_equal_scores_are_chosen_by_id():
    """All logits equal: the batch and the row alone break the tie in the same order."""
    logits = torch.zeros(3, 500)
    settings = [Sampling(temperature=1.0, top_k=0, seed=seed) for seed in range(3)]
    alone = [sampling.choose(row, each, 0) for row, each in zip(logits, settings, strict=True)]
    assert sampler.choose(logits, settings, [0, 0, 0]).tolist() == alone
