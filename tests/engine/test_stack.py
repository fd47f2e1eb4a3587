"""Fused and packed blocks compute what the model's blocks compute."""

import pytest
import torch

from omni.engine.stack import Rotary, Stack, project, rotate
from omni.model import transformer
from omni.model.config import RopeConfig
from omni.model.transformer import GrowingCache


def test_a_stack_equals_its_blocks(omni):
    """Prefill and two steps, against the reference's modules."""
    config = omni.config.llm
    stack, own, reference = Stack(omni.llm.layers, config, 32, "float"), GrowingCache(2), GrowingCache(2)
    generator = torch.Generator().manual_seed(0)
    for start, stop in ((0, 7), (7, 8), (8, 9)):
        x = torch.randn(2, stop - start, config.width, generator=generator)
        positions = torch.arange(start, stop).expand(2, -1)
        hidden = omni.llm.norm(stack(x, positions, own))
        torch.testing.assert_close(hidden, omni.llm(x, positions, reference), atol=1e-4, rtol=1e-4)
    assert (stack.calls, stack.rows) == (3, 18)


@pytest.mark.parametrize("rope", [RopeConfig(), RopeConfig(5e5, 8.0, 1.0, 4.0, 8192)], ids=["plain", "llama3"])
def test_looked_up_rotation_equals_the_computed_one(rope):
    """At any position, negative ones too: the unit decoder looks back by up to 24."""
    rotary = Rotary(rope, 16, -24, 100, torch.zeros(1))
    positions = torch.tensor([[-24, -1, 0, 3, 100]])
    x = torch.randn(1, 5, 2, 16, generator=torch.Generator().manual_seed(1))
    wanted = transformer.rotate(x.transpose(1, 2), *transformer.rotation(positions, rope, 16, x.dtype))
    torch.testing.assert_close(rotate(x, *rotary(positions)).transpose(1, 2), wanted)


@pytest.mark.filterwarnings("ignore:.*deprecated:UserWarning")
def test_eight_bits_are_close_and_do_not_look_at_the_neighbours():
    """A row's 8-bit product is the same alone and beside a row a thousand times as large."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [torch.nn.Linear(64, 96), torch.nn.Linear(64, 32)]
        x = torch.randn(5, 64)
    x[3] *= 1000
    with torch.inference_mode():
        exact, product = torch.cat([each(x) for each in layers], dim=-1), project(layers, "int8")
        together = product(x)
        assert torch.equal(torch.cat([product(row[None]) for row in x]), together)
    error = (together - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert error.max() < 0.02


def test_unpacked_layers_become_views_of_the_fused_weight(monkeypatch):
    """Where nothing is packed, as on a GPU, a model is in memory once, and still computes what it did."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    layers = [torch.nn.Linear(8, 4).requires_grad_(False), torch.nn.Linear(8, 6).requires_grad_(False)]
    x = torch.ones(3, 8)
    wanted = torch.cat([each(x) for each in layers], dim=-1)
    product = project(layers)
    assert layers[0].weight.untyped_storage().data_ptr() == layers[1].weight.untyped_storage().data_ptr()
    torch.testing.assert_close(torch.cat([each(x) for each in layers], dim=-1), wanted)
    torch.testing.assert_close(product(x), wanted)
