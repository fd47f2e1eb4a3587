"""The unit decoder token by token equals the unit decoder over everything."""

import pytest
import torch

from omni.engine.projection import Projecting
from omni.engine.speech import Speech

FLOAT = Projecting("float", torch.device("cpu"))


@pytest.fixture(scope="module")
def states(golden) -> torch.Tensor:
    return torch.randn(3, 40, golden.config.llm.width, generator=torch.Generator().manual_seed(3)) * 2


def whole(golden, states: torch.Tensor) -> torch.Tensor:
    B, n, _ = states.shape
    return golden.unit_decoder(states).view(B, n, golden.config.upsample, -1)


@pytest.mark.parametrize("pieces", [[1] * 12, [12], [1, 5, 1, 1, 4]], ids=str)
def test_any_pieces_equal_the_whole(golden, states, pieces):
    """One token at a time as in decoding, or several as in recovery."""
    speech, done, parts = Speech(golden.unit_decoder, 4, 64, FLOAT), 0, []
    for n in pieces:
        parts.append(speech([2], states[:1, done : done + n], [done]))
        done += n
    torch.testing.assert_close(torch.cat(parts, dim=1), whole(golden, states[:1, :done]), atol=2e-3, rtol=1e-4)


def test_rows_of_different_lengths_do_not_touch_each_other(golden, states):
    """Three answers at token 3, 30 and 11 go on together; slots in any order."""
    speech, slots, lengths = Speech(golden.unit_decoder, 4, 64, FLOAT), [3, 0, 1], [3, 30, 11]
    for slot, length, row in zip(slots, lengths, states, strict=True):
        speech([slot], row[None, :length], [0])
    for step in range(4):
        firsts = [length + step for length in lengths]
        now = torch.stack([row[first] for row, first in zip(states, firsts, strict=True)])[:, None]
        logits = speech(slots, now, firsts)
        for i, first in enumerate(firsts):
            alone = whole(golden, states[i : i + 1, : first + 1])[0, -1]
            torch.testing.assert_close(logits[i, 0], alone, atol=2e-3, rtol=1e-4)
            assert torch.equal(logits[i, 0].argmax(-1), alone.argmax(-1))


def test_scores_far_apart_keep_their_sum(golden):
    """States so large that single weights underflow in float32: still what softmax gives, nothing divided by zero."""
    states = torch.randn(1, 6, golden.config.llm.width, generator=torch.Generator().manual_seed(4)) * 1e4
    speech = Speech(golden.unit_decoder, 1, 8, FLOAT)
    assert speech([0], states, [0]).isfinite().all()
