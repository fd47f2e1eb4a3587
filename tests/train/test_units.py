"""Units from encoder states: costs, merging, positions, projection, and the files they are kept in."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch

from omni.model import tiny
from omni.model.encoder import Encoder
from omni.train import units
from omni.train.units import Units


def test_runs_are_merged_and_their_lengths_kept():
    assert units.merge([7, 7, 3, 7, 7, 7]) == ([7, 3, 7], [2, 1, 3])
    assert units.merge([]) == ([], [])


@pytest.mark.parametrize("change_cost", [0.0, 0.3, 2.0])
def test_the_path_is_the_cheapest_of_all(change_cost):
    costs = torch.rand(6, 3, generator=torch.Generator().manual_seed(1))

    def total(path):
        changes = sum(a != b for a, b in pairwise(path))
        return float(costs[torch.arange(6), torch.tensor(path)].sum()) + change_cost * changes

    cheapest = min(total(path) for path in product(range(3), repeat=6))
    assert total(units.cheapest_path(costs, change_cost).tolist()) == pytest.approx(cheapest)


def test_a_dearer_change_leaves_fewer_units():
    noisy = torch.rand(200, 5, generator=torch.Generator().manual_seed(2))
    counts = [len(units.merge(units.cheapest_path(noisy, cost).tolist())[0]) for cost in (0.0, 0.2, 1.0)]
    assert counts[0] > counts[1] > counts[2]


def test_windows_hold_every_recording_once_and_in_order():
    lengths = [100, 250, 300, 700, 20]
    packed = list(units.windows(lengths, limit=400))
    assert packed == [[0, 1], [2], [3], [4]]


def test_the_mean_of_a_position_is_taken_off():
    positions = torch.arange(10).repeat(50)
    tilt = torch.linspace(-5, 5, 10)[:, None] * torch.ones(1, 4)
    content = torch.randn(500, 4, generator=torch.Generator().manual_seed(3))
    mean = units.position_mean(content + tilt[positions], positions, 12)
    torch.testing.assert_close(mean[:10] - mean[:10].mean(0), tilt, atol=0.8, rtol=0)
    torch.testing.assert_close(mean[11], (content + tilt[positions]).mean(0))  # never seen: the mean of all


def test_discriminants_find_what_tells_the_labels_apart():
    """Two labels differ in one weak dimension beside a loud one that says nothing."""
    draw = torch.Generator().manual_seed(4)
    labels = torch.arange(400) % 2
    x = torch.randn(400, 3, generator=draw) * torch.tensor([1.0, 50.0, 1.0])
    x[:, 2] += 6.0 * labels
    seen = x @ units.discriminants(x, labels, 1)
    apart = (seen[labels == 1].mean() - seen[labels == 0].mean()).abs()
    assert apart > 5 * seen[labels == 0].std()


def test_units_come_back_from_their_file_and_name_the_nearest_centroid(tmp_path):
    made = Units(3, torch.zeros(8, 4), torch.eye(4)[:, :2], torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]]), 0.5)
    made.save(tmp_path / "units.safetensors")
    again = Units.load(tmp_path / "units.safetensors")
    assert (again.layer, again.change_cost) == (3, 0.5)
    states = torch.tensor([[0.2, 0.1, 9, 9], [3.9, 0.3, -9, 9], [0.1, 5.0, 0, 0]])
    assert again(states, torch.arange(3)).tolist() == [0, 1, 2]


def test_a_window_gives_each_recording_its_own_frames():
    encoder = Encoder(tiny.ENCODER_DIMS).eval()
    sounds = [np.random.default_rng(i).standard_normal(320 * frames) * 0.1 for i, frames in enumerate((12, 30))]
    found = units.encode(encoder, sounds, [0, 2])
    assert [len(each) for each in found[2]] == [12, 30]
    assert found[0][0].shape[1] == tiny.ENCODER_DIMS.width
    assert not torch.equal(found[0][1], found[2][1])
