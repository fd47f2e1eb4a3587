"""The step that a GPU records, run as it is: equal to the reference. Recording itself needs a GPU."""

import pytest
import torch

from omni.engine.engine import Engine, EngineConfig
from omni.engine.graphs import Decoding
from omni.model.sampling import Sampling
from tests.engine.conftest import reference, run


@pytest.mark.parametrize("which", ["golden", "omni"])
def test_fixed_shapes_equal_the_reference(request, questions, which):
    """Rows that come and go, greedy and sampled, padded to buckets: tokens, text and units are what they are alone."""
    omni = request.getfixturevalue(which)
    engine = Engine(omni, EngineConfig(num_slots=3, fixed_shapes=True, one_behind=True))
    wanted = {}
    for i, question in enumerate(questions):
        sampling = Sampling(max_new_tokens=4 + 3 * i, temperature=0.8 * (i % 2), seed=i)
        engine.add(f"{i}", question, sampling)
        wanted[f"{i}"] = reference(omni, question, sampling)
    assert run(engine) == wanted
    assert {rows for rows, *_ in engine.runner.decoding.shapes} <= {1, 2, 4}


def test_an_answer_meets_few_shapes():
    """Up to a hundred rows, 2048 positions and 256 tokens: 11 x 4 x 3 shapes, each at least as large as asked."""
    decoding = Decoding(lambda *_: None, torch.device("cpu"), 2048, 256, capture=False)
    shapes = {decoding.shape(b, n, t) for b in range(1, 101) for n in range(1, 2049, 7) for t in (1, 64, 65, 200, 256)}
    assert len(shapes) == 11 * 4 * 3
    assert decoding.shape(3, 257, 64) == (4, 512, 64)
    assert decoding.shape(300, 2048, 256) == (300, 2048, 256)
