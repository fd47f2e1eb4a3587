"""Rows of different lengths side by side: each sees itself, up to its own length."""

import pytest
import torch

from omni.engine.slots import Slots
from omni.model.config import BlockConfig, RopeConfig
from omni.model.transformer import Attention, GrowingCache, rotation

CONFIG = BlockConfig(1, 32, 4, 2, 8, 64, 1e-5, RopeConfig())


@pytest.fixture
def attention() -> Attention:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Attention(CONFIG).requires_grad_(False)


def attend(attention, x, positions, cache):
    return attention(x, rotation(positions, CONFIG.rope, CONFIG.head_dim, x.dtype), cache, 0)


@pytest.mark.parametrize("rows", [[0, 1, 2], [3, 0, 2], [1]], ids=str)
def test_rows_of_different_lengths_equal_a_cache_of_their_own(attention, rows):
    """Prefill in two pieces row by row, then steps of all rows at once, in any slots and any order."""
    slots = Slots(CONFIG, 4, 64, torch.zeros(1))
    lengths = [5, 17, 9][: len(rows)]
    own = [GrowingCache(1) for _ in rows]
    generator = torch.Generator().manual_seed(1)
    for slot, length, cache in zip(rows, lengths, own, strict=True):
        for start, stop in ((0, 3), (3, length)):
            x = torch.randn(1, stop - start, 32, generator=generator)
            view = slots.rows([slot], [start], stop - start)
            wanted = attend(attention, x, torch.arange(start, stop)[None], cache)
            torch.testing.assert_close(attend(attention, x, view.positions, view), wanted)
    for step in range(3):
        x = torch.randn(len(rows), 2, 32, generator=generator)
        view = slots.rows(rows, [length + 2 * step for length in lengths], 2)
        together = attend(attention, x, view.positions, view)
        for i, cache in enumerate(own):
            wanted = attend(attention, x[i : i + 1], view.positions[i : i + 1], cache)
            torch.testing.assert_close(together[i : i + 1], wanted)


def test_a_row_is_written_over_without_a_trace(attention):
    """A slot that held a longer sequence gives the next one what a fresh slot gives."""
    slots, fresh = (Slots(CONFIG, 2, 32, torch.zeros(1)) for _ in range(2))
    x = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(2))
    long = slots.rows([0, 1], [0, 20], 6)
    attend(attention, x * 100, long.positions, long)
    results = []
    for each in (slots, fresh):
        view = each.rows([0, 1], [0, 0], 6)
        attend(attention, x, view.positions, view)
        view = each.rows([0, 1], [6, 6], 1)
        results.append(attend(attention, x[:, :1], view.positions, view))
    assert torch.equal(*results)


def test_cleared_leaves_no_nan(attention):
    """A masked NaN would still be NaN after attention: a row that went wrong is cleared."""
    slots = Slots(CONFIG, 2, 32, torch.zeros(1))
    slots.k[:, 1], slots.v[:, 1] = torch.nan, torch.nan
    slots.clear(1)
    view = slots.rows([0, 1], [9, 2], 1)
    assert attend(attention, torch.ones(2, 1, 32), view.positions, view).isfinite().all()
