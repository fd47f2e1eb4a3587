"""25 positions a token, causal: units of a prefix stay, with a cache and without; collapse merges, then drops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.model import batch
from omni.model.ctc import Collapse, collapse
from omni.model.ctc_loss import ctc_loss, num_positions, upsample_index


@torch.inference_mode()
def test_more_tokens_do_not_change_what_was_said(golden):
    hidden = torch.randn(1, 6, 64)
    whole = golden.unit_decoder(hidden)
    for size in range(1, 6):
        torch.testing.assert_close(golden.unit_decoder(hidden[:, :size]), whole[:, : 25 * size], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sizes", [(1,) * 6, (4, 2), (1, 3, 2)], ids=str)
@torch.inference_mode()
def test_a_cache_gives_what_a_whole_pass_gives(golden, sizes):
    hidden = torch.randn(1, 6, 64)
    decoder, cache, pieces, start = golden.unit_decoder, golden.unit_decoder.new_cache(), [], 0
    for size in sizes:
        pieces.append(decoder(hidden[:, start : start + size], start, cache))
        start += size
    torch.testing.assert_close(torch.cat(pieces, dim=1), decoder(hidden), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_the_first_tokens_positions_are_all_alike(golden):
    """Attention over equal values gives that value, so the first token says at most one unit."""
    logits = golden.unit_decoder(torch.randn(1, 1, 64))[0]
    assert (logits - logits[0]).abs().max() < 1e-3


@settings(deadline=None)
@given(st.lists(st.integers(0, 4)), st.integers(1, 7))
def test_collapse_in_pieces_is_collapse_at_once(classes, size):
    """A repeat that goes on across a border is one unit."""
    streamed = Collapse(blank=4)
    pieces = [unit for i in range(0, len(classes), size) for unit in streamed(classes[i : i + size])]
    assert pieces == collapse(classes, blank=4)


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=30))
def test_collapse_inverts_spelling_out(units):
    """Units with blanks between them, each repeated, collapse to the units."""
    classes = [each for unit in units for each in (unit, unit, unit, 9, 9)]
    assert collapse(classes, blank=9) == units


def test_upsampling_is_plain_repetition_unless_the_speech_needs_more():
    assert num_positions(3, 20, 25) == 75
    assert upsample_index(3, 75).tolist() == [0] * 25 + [1] * 25 + [2] * 25
    assert num_positions(3, 80, 25) == 80
    assert upsample_index(3, 80).bincount().tolist() == [27, 27, 26]


def test_the_loss_is_small_where_the_logits_spell_the_units_and_ignores_padding():
    units = torch.tensor([[3, 1, 2], [4, -100, -100]])
    logits = torch.zeros(2, 12, 6)
    for row, classes in enumerate(([3, 3, 5, 1, 1, 1, 5, 2, 5, 5, 5, 5], [5, 4, 4, 5])):
        logits[row, range(len(classes)), classes] = 20.0
    lengths, unit_lengths = torch.tensor([12, 4]), torch.tensor([3, 1])
    loss = ctc_loss(logits, lengths, units, unit_lengths, blank=5)
    assert loss < 1e-3
    logits[1, 4:] = torch.randn(8, 6) * 10
    assert ctc_loss(logits, lengths, units, unit_lengths, blank=5) == loss
    logits[0, 3:6] = 0.0
    assert ctc_loss(logits, lengths, units, unit_lengths, blank=5) > 0.5


def test_an_answer_too_short_for_its_units_adds_nothing():
    logits = torch.zeros(1, 2, 6, requires_grad=True)
    loss = ctc_loss(logits, torch.tensor([2]), torch.tensor([[1, 2, 3]]), torch.tensor([3]), blank=5)
    loss.backward()
    assert loss == 0.0
    assert logits.grad.abs().max() == 0.0


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_padded_batch_keeps_each_rows_tokens_and_positions(side):
    rows = [torch.ones(2, 4), torch.ones(5, 4)]
    padded = batch.pad(rows, [torch.tensor([7, 8]), torch.arange(5)], side)
    own = slice(0, 2) if side == "right" else slice(3, 5)
    assert padded.mask.sum(dim=1).tolist() == [2, 5]
    assert padded.mask[0, own].all()
    assert padded.positions[0, own].tolist() == [0, 1]
    assert padded.labels[0, own].tolist() == [7, 8]
    assert padded.labels[0].tolist().count(batch.IGNORED) == 3
    assert padded.embeds[0][~padded.mask[0]].abs().max() == 0.0
