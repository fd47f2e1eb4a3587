"""Several layers, one product: equal to the layers, in every form that the weights can have."""

import copy

import pytest
import torch
from torch import nn

from omni.engine.engine import Engine, EngineConfig
from omni.engine.projection import WEIGHTS, Projecting
from omni.model.sampling import Sampling
from omni.serve.config import MODEL_WEIGHTS
from tests.engine.conftest import reference, run

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:UserWarning")


@pytest.fixture
def layers() -> list[nn.Linear]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [nn.Linear(64, 96).requires_grad_(False), nn.Linear(64, 32).requires_grad_(False)]


@pytest.fixture
def unpacked(monkeypatch) -> None:
    """As on a GPU."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)


@pytest.mark.parametrize(("weights", "bound"), [("float", 1e-5), ("int8", 0.02), ("fp8", 0.06)])
def test_is_close_and_does_not_look_at_the_neighbours(layers, weights: str, bound: float):
    """A row's product is the same alone and beside a row a thousand times as large."""
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    x[3] *= 1000
    exact, product = torch.cat([each(x) for each in layers], dim=-1), Projecting(weights, CPU)(layers)
    together = product(x)
    alone = torch.cat([product(row[None]) for row in x])
    assert weights != "int8" or torch.equal(alone, together)
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-3)  # floats are added in another order
    error = (together - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert error.max() < bound


def test_packed_int8_is_the_unpacked_one(layers, monkeypatch):
    """The CPU's packed product and a GPU's add the same integers."""
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    packed = Projecting("int8", CPU)(layers)(x)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    torch.testing.assert_close(Projecting("int8", CPU)(layers)(x), packed, rtol=1e-5, atol=1e-5)


def test_unpacked_layers_become_views_of_the_fused_weight(unpacked):
    """Where nothing is packed, as on a GPU, a model is in memory once, and still computes what it did."""
    layers = [nn.Linear(8, 4).requires_grad_(False), nn.Linear(8, 6).requires_grad_(False)]
    x = torch.ones(3, 8)
    wanted = torch.cat([each(x) for each in layers], dim=-1)
    product = Projecting("float", CPU, release=True)(layers)
    assert layers[0].weight.untyped_storage().data_ptr() == layers[1].weight.untyped_storage().data_ptr()
    torch.testing.assert_close(torch.cat([each(x) for each in layers], dim=-1), wanted)
    torch.testing.assert_close(product(x), wanted)


@pytest.mark.parametrize("weights", ["float", "int8", "fp8"])
def test_released_layers_keep_no_weights_unless_told(layers, weights: str):
    """The product goes on; a layer that is used elsewhere stays."""
    x = torch.ones(3, 64)
    product = Projecting(weights, CPU, release=True)(layers)
    assert [each.weight.nbytes for each in layers] == [0, 0] and product(x).shape == (3, 128)
    kept = nn.Linear(64, 32).requires_grad_(False)
    Projecting(weights, CPU, release=True)([kept], keep=True)
    assert kept.weight.shape == (32, 64)


@pytest.mark.parametrize("weights", ["int8", "fp8"])
def test_an_engine_in_8_bits_has_half_the_bytes_and_mostly_the_same_tokens(omni, questions, unpacked, weights: str):
    """The paths of a GPU, against bfloat16's own answers, its tokens forced: at least 4 of 5 tokens are the same.

    The weights are random, so that many tokens are nearly as likely as the best one: a trained model agrees more.
    """
    plain = copy.deepcopy(omni).to(torch.bfloat16)
    model = copy.deepcopy(plain)
    blocks = [*model.llm.layers, *model.unit_decoder.layers]
    before = sum(p.nbytes for block in blocks for name, p in block.named_parameters() if "proj" in name)
    engine = Engine(model, EngineConfig(num_slots=4, weights=weights, release=True))
    assert sum(p.nbytes for block in blocks for name, p in block.named_parameters() if "proj" in name) == 0
    fused = [*engine.runner.text.blocks, engine.runner.speech.first, *engine.runner.speech.rest.blocks]
    after = sum(each.nbytes for block in fused for each in (block.qkv, block.out, block.gate_up, block.down))
    assert 0.5 < after / before < 0.55  # layers of 64: a row's scale is a 16th of the row

    same, whole = 0, [reference(plain, question, Sampling(max_new_tokens=12)).tokens for question in questions]
    for step in range(12):
        for i, question in enumerate(questions):
            engine.add(f"{i}", question, Sampling(max_new_tokens=step + 1), forced=whole[i][:step])
        answers = run(engine)
        same += sum(answers[f"{i}"].tokens == tokens[step : step + 1] for i, tokens in enumerate(whole))
    assert same >= 0.8 * sum(map(len, whole)), same
    assert sorted(engine.scheduler.free) == [0, 1, 2, 3]


def test_a_worker_offers_every_form_there_is():
    """The names in the settings, which are read without torch, are those of the engine."""
    assert MODEL_WEIGHTS == WEIGHTS
