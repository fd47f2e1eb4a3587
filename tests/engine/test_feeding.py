"""What a step is told goes to the device in one way, which waits for nothing there."""

import pytest
import torch

from omni.engine.engine import Engine, EngineConfig
from omni.engine.feeding import feed
from omni.model.sampling import Sampling
from tests.engine.conftest import reference, run


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("values", [[], [3], [0, 7, 7]], ids=str)
def test_it_gives_what_torch_gives(values, dtype):
    fed = feed(values, torch.device("cpu"), dtype)
    assert fed.dtype is dtype and fed.equal(torch.tensor(values, dtype=dtype))


@pytest.mark.parametrize("fixed_shapes", [False, True], ids=["as they come", "in fixed shapes"])
def test_a_step_makes_no_tensor_of_a_list_on_the_device(omni, questions, monkeypatch, fixed_shapes):
    """On a GPU each would wait for the step before. Counted on a CPU, over steps of greedy and sampled rows."""
    engine = Engine(omni, EngineConfig(num_slots=3, fixed_shapes=fixed_shapes))
    settings = [
        Sampling(max_new_tokens=6),
        Sampling(max_new_tokens=6, temperature=0.7, top_p=0.9, seed=1),
        Sampling(max_new_tokens=6, temperature=0.7, top_k=0, seed=2),
    ]
    wanted = {f"{i}": reference(omni, questions[i], each) for i, each in enumerate(settings)}
    for i, each in enumerate(settings):
        engine.add(f"{i}", questions[i], each)
    engine.step()
    make, on_device = torch.tensor, []

    def counted(*args, **kwargs):
        on_device.extend([args] if kwargs.get("device") is not None else [])
        return make(*args, **kwargs)

    monkeypatch.setattr(torch, "tensor", counted)
    answers = run(engine)
    monkeypatch.undo()
    for name, answer in answers.items():
        assert wanted[name].tokens[-len(answer.tokens) :] == answer.tokens
    assert len(answers) == 3 and on_device == []
