"""Fused and packed blocks compute what the model's blocks compute."""

import pytest
import torch

from omni.engine.projection import Projecting
from omni.engine.stack import Rotary, Stack, rotate
from omni.model import transformer
from omni.model.config import RopeConfig
from omni.model.transformer import GrowingCache

FLOAT = Projecting("float", torch.device("cpu"))


def test_a_stack_equals_its_blocks(omni):
    """Prefill and two steps, against the reference's modules."""
    config = omni.config.llm
    stack, own, reference = Stack(omni.llm.layers, config, 32, FLOAT), GrowingCache(2), GrowingCache(2)
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
