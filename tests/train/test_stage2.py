"""Stage 2: which token says which unit, and a decoder that learns to say them."""

import itertools

import pytest
import torch

from omni.model.config import BlockConfig, RopeConfig
from omni.model.unit_decoder import UnitDecoder
from omni.train import stage2
from omni.train.stage2 import Spoken


def test_a_unit_belongs_to_the_token_spoken_at_its_middle():
    ends = [(0, 0.5), (0, 1.0), (1, 1.0)]  # two tokens in the first word, one in the second
    durations = [0.1, 0.4, 0.2, 0.3]  # middles at 0.05, 0.30, 0.60, 0.85 s
    assert stage2.tokens_of_units(ends, [0.5, 1.0], durations) == [0, 1, 2, 2]


def test_aligned_targets_come_one_row_later_and_the_last_row_says_the_rest():
    targets = stage2.aligned_targets([5, 6, 7, 8, 9], [0, 0, 1, 2, 2], num_rows=3, upsample=4, blank=99)
    assert targets.tolist() == [99] * 4 + [5, 5, 6, 6] + [7, 8, 9, 9][:0] + [7, 7, 8, 9]


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [([], [], 0), ([1, 2], [], 2), ([], [3], 1), ([1, 2, 3], [1, 3], 1), ([1, 2, 3], [3, 2, 1], 2), ([4], [5], 1)],
)
def test_edit_distance(a, b, distance):
    assert stage2.edit_distance(a, b) == distance


def test_batches_hold_answers_of_like_length():
    answers = [Spoken("", torch.zeros(n % 50 + 1, 4), [1], None) for n in range(200)]
    for _, batch in zip(range(8), stage2.batches(answers, [1.0] * 200, 16, seed=0), strict=False):
        lengths = [len(answer.hidden) for answer in batch]
        assert max(lengths) - min(lengths) < 25


@pytest.mark.parametrize("first", [0, 3, 8, 13])
def test_a_batch_follows_from_seed_and_number_alone(first):
    """A run that goes on with batch 13 learns what it would have learnt undisturbed."""
    answers = [Spoken(f"{n}", torch.zeros(n % 7 + 1, 4), [1], None) for n in range(50)]

    def texts(start, count):
        some = itertools.islice(stage2.batches(answers, [1.0] * 50, 4, seed=5, first=start), count)
        return [[answer.text for answer in batch] for batch in some]

    assert texts(first, 6) == texts(0, first + 6)[first:]


def test_a_decoder_learns_to_say_what_belongs_to_its_states():
    """Four answers of three tokens and the stop, two units a token: told when first, then free, none is wrong."""
    torch.manual_seed(0)
    decoder = UnitDecoder(BlockConfig(1, 32, 2, 2, 16, 64, 1e-5, RopeConfig()), 16, num_units=8, upsample=4)
    said = torch.randn(4, 16)  # a state for every token
    answers = []
    for tokens in ([0, 1, 2], [2, 0, 3], [3, 1, 0], [1, 3, 2]):
        units = [unit for token in tokens for unit in (2 * token, 2 * token + 1)]
        answers.append(Spoken("", torch.stack([*said[tokens], torch.zeros(16)]), units, [0, 0, 1, 1, 2, 2]))
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=5e-3)
    for step in range(120):
        loss, _ = stage2.loss_of(decoder, answers, 8, aligned=0.9 if step < 100 else 0.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert stage2.unit_error_rate(decoder, answers, 8) == 0.0
