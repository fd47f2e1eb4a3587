"""The step that a GPU records, run as it is: equal to the reference. Recording itself needs a GPU."""

import logging

import pytest
import torch

from omni.engine.decoding import Decoding
from omni.engine.engine import Engine, EngineConfig
from omni.model.sampling import Sampling
from tests.engine.conftest import reference, run

CPU = torch.device("cpu")


@pytest.mark.parametrize("which", ["golden", "omni"])
def test_fixed_shapes_equal_the_reference(request, questions, caplog, which):
    """All shapes are met before the first question, in largest first, and none is new after that.

    Rows that come and go, greedy and sampled, padded to buckets: tokens, text and units are what they are alone.
    """
    omni = request.getfixturevalue(which)
    config = EngineConfig(num_slots=3, max_tokens=800, max_answer=60, fixed_shapes=True, one_behind=True)
    engine = Engine(omni, config)
    before = engine.runner.text.calls
    with caplog.at_level(logging.INFO):
        engine.warm_up()
    graphs = engine.runner.decoding.graphs
    ready = list(graphs.shapes)
    assert ready == [(rows, length, 60) for rows in (4, 2, 1) for length in (800, 512, 256)]
    assert engine.runner.text.calls - before == len(ready)
    assert "decode step: 9 of 9 shapes are ready" in caplog.text
    wanted = {}
    for i, question in enumerate(questions):
        sampling = Sampling(max_new_tokens=4 + 3 * i, temperature=0.8 * (i % 2), seed=i)
        engine.add(f"{i}", question, sampling)
        wanted[f"{i}"] = reference(omni, question, sampling)
    assert run(engine) == wanted
    assert list(graphs.shapes) == ready


def test_where_shapes_do_not_matter_nothing_is_warmed_up(omni):
    """On a CPU a step takes the shape it has: a start costs nothing more."""
    engine = Engine(omni, EngineConfig(num_slots=2))
    engine.warm_up()
    assert engine.runner.text.calls == 0


def test_an_answer_meets_few_shapes():
    """Up to a hundred rows, 2048 positions and 256 tokens: 11 x 4 x 3 shapes, each at least as large as asked."""
    decoding = Decoding(lambda *_: None, CPU, 100, 2048, 256, capture=False)
    shapes = {decoding.shape(b, n, t) for b in range(1, 101) for n in range(1, 2049, 7) for t in (1, 64, 65, 200, 256)}
    assert len(shapes) == 11 * 4 * 3
    assert shapes == set(decoding.every_shape())
    assert decoding.every_shape()[0] == (128, 2048, 256)
    assert decoding.shape(3, 257, 64) == (4, 512, 64)
    assert decoding.shape(300, 2048, 256) == (320, 2048, 256)
