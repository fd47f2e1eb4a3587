"""Quantiles, intervals and tables."""

import statistics

import numpy as np
import pytest

from bench import report


@pytest.mark.parametrize("q", [0.0, 0.25, 0.5, 0.95, 1.0])
def test_quantiles_are_numpys(q: float):
    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    assert report.quantile(values, q) == pytest.approx(np.quantile(values, q))
    assert report.quantile([], q) is None


def test_an_interval_holds_the_median_and_narrows_with_more():
    """The bootstrap is seeded: the same values, the same interval."""
    few, many = [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0] * 20
    assert report.interval(few) == report.interval(few)
    assert report.interval(few)["median"] == statistics.median(few)
    assert report.interval(few)["low"] <= 3.0 <= report.interval(few)["high"]
    width = [report.interval(values)["high"] - report.interval(values)["low"] for values in (few, many)]
    assert width[1] < width[0]


def test_a_table_is_markdown():
    assert report.table(["a", "b"], [["x", "1"]]).splitlines() == ["| a | b |", "| --- | ---: |", "| x | 1 |"]
