"""Two checkpoints' answers: how far apart, and whether chance could do that."""

from dataclasses import replace

import pytest
from test_measures import BAD, GOOD

from omni.train import compare


def test_a_clear_difference_is_told_from_chance():
    """Twenty questions, one checkpoint right on all and the other on none: no resample says otherwise."""
    ours = [replace(GOOD, id=str(i), mos=4.0) for i in range(20)]
    theirs = [replace(BAD, id=str(i), mos=3.0 if i else None, fitting_written=None) for i in range(20)]
    found = compare.difference(ours, theirs)
    assert found["fitting"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["mos"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["asr_wer"]["value"] == pytest.approx(-0.5)  # two of four words wrong, against none
    assert found["fitting_text"] is None  # one of them was not asked


def test_a_chance_difference_spans_zero_and_the_seed_decides_its_ends():
    ours = [replace(GOOD if i % 2 else BAD, id=str(i)) for i in range(30)]
    theirs = [replace(GOOD if i % 3 else BAD, id=str(i)) for i in range(30)]
    found = compare.difference(ours, theirs, seed=1)["fitting"]
    assert found["low"] < 0 < found["high"]
    assert found == compare.difference(ours, theirs, seed=1)["fitting"]


def test_other_questions_cannot_be_compared():
    with pytest.raises(AssertionError, match="the same questions"):
        compare.difference([GOOD], [replace(GOOD, id="b")])
