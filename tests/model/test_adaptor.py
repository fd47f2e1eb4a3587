"""Five frames make one speech embedding; with context, an embedding also sees its neighbours."""

from dataclasses import replace

import pytest
import torch

from omni.model import config as configs
from omni.model.adaptor import Adaptor
from omni.model.tiny import CONFIG


def adaptor(context: int) -> Adaptor:
    torch.manual_seed(0)
    return Adaptor(replace(configs.parse(CONFIG), adaptor_context=context))


@pytest.mark.parametrize("num_frames", [0, 4, 5, 9, 10, 1500])
@pytest.mark.parametrize("context", [0, 1, 2])
def test_a_rest_of_frames_is_dropped(num_frames, context):
    out = adaptor(context)(torch.randn(2, num_frames, 64))
    assert out.shape == (2, num_frames // 5, 64)


def test_published_windows_are_frames_in_order():
    frames = torch.arange(2 * 10 * 64, dtype=torch.float32).view(2, 10, 64)
    windows = adaptor(0).windows(frames)
    assert windows[1, 1].equal(torch.cat([frames[1, t] for t in range(5, 10)]))


def test_context_windows_are_neighbours_in_order_with_zeros_at_the_ends():
    frames = torch.randn(1, 20, 64)
    plain, windows = adaptor(0).windows(frames)[0], adaptor(2).windows(frames)[0]
    nothing = torch.zeros_like(plain[0])
    padded = [nothing, nothing, *plain, nothing, nothing]
    for i, window in enumerate(windows):
        assert window.equal(torch.cat(padded[i : i + 5]))


@pytest.mark.parametrize("context", [0, 1, 3])
def test_an_embedding_hears_its_context_and_no_further(context):
    module = adaptor(context)
    frames = torch.randn(1, 50, 64)
    changed = frames.clone()
    changed[:, 25:30] += 1.0  # window 5
    different = (module(frames) != module(changed)).any(-1)[0].nonzero()[:, 0].tolist()
    assert different == list(range(5 - context, 5 + context + 1))
