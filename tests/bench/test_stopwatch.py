"""A stopwatch books each second under one stage, and leaves nothing behind."""

import time

import pytest
import torch
from torch import nn

from bench.stopwatch import Stopwatch


class Kitchen:
    def cook(self):
        self.chop()
        time.sleep(0.01)
        return "soup"

    def chop(self):
        time.sleep(0.02)


def test_a_stage_inside_another_is_not_counted_twice():
    """The outer stage gets what the inner one leaves."""
    kitchen, watch = Kitchen(), Stopwatch(torch.device("cpu"))
    started = time.perf_counter()
    with watch.on((kitchen, "cook", "cook"), (kitchen, "chop", "chop"), (kitchen, "bake", "bake")):
        assert kitchen.cook() == "soup"
    whole = time.perf_counter() - started
    assert dict(watch.calls) == {"cook": 1, "chop": 1}
    assert watch.seconds["chop"] >= 0.02
    assert watch.seconds["cook"] + watch.seconds["chop"] <= whole
    assert vars(kitchen) == {}


def test_modules_are_wrapped_and_given_back():
    """torch's modules too; their own attributes stay reachable meanwhile, and an error gives everything back."""
    parent, watch = nn.Sequential(nn.Linear(2, 2)), Stopwatch(torch.device("cpu"))
    parent.head = nn.Linear(2, 2)
    head = parent.head
    with pytest.raises(ZeroDivisionError), watch.on((parent, "head", "head")):
        assert parent.head.in_features == 2
        parent.head(torch.zeros(1, 2))
        raise ZeroDivisionError
    assert parent.head is head and watch.calls["head"] == 1
