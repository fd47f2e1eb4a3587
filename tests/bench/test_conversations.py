"""Plans are drawn from a seed, and have the shape that was asked for."""

import itertools
import statistics

import pytest

from bench.conversations import Habits, arrivals, conversation


def test_the_same_seed_plans_the_same():
    plans = [list(conversation(Habits(), 3, 10)) for _ in range(2)]
    assert plans[0] == plans[1]
    assert plans[0] != list(conversation(Habits(), 4, 10))


def test_plans_have_the_wanted_shape():
    """Four turns, two seconds of thought, one answer in ten interrupted; the first question is not thought about."""
    plans = [list(conversation(Habits(), seed, 10)) for seed in range(2000)]
    turns = list(itertools.chain(*plans))
    assert statistics.mean(map(len, plans)) == pytest.approx(4.0, rel=0.1)
    assert {plan[0].think for plan in plans} == {0.0} and all(plan[-1].last for plan in plans)
    assert statistics.mean(turn.think for plan in plans for turn in plan[1:]) == pytest.approx(2.0, rel=0.1)
    assert sum(turn.interrupt_after is not None for turn in turns) / len(turns) == pytest.approx(0.1, rel=0.2)
    assert {turn.question for turn in turns} == set(range(10))


def test_arrivals_are_a_poisson_process():
    """Half a conversation a second, gaps with the deviation of an exponential."""
    times = list(itertools.islice(arrivals(0.5, 1), 5000))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(2.0, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(2.0, rel=0.1)
