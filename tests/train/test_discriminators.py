"""HiFi-GAN's discriminators: of the published size, and losses that pull where they should."""

import pytest
import torch

from omni.train import discriminators
from omni.train.discriminators import Discriminators, PeriodDiscriminator, ScaleDiscriminator


def test_the_published_size():
    """Parameters as the published ones have them: 41.1 M over five periods, 29.6 M over three scales."""
    with torch.device("meta"):
        judges = Discriminators()
    sizes = [sum(p.numel() for p in part.parameters()) for part in (judges.periods, judges.scales)]
    columns = [(1, 32, 5), (32, 128, 5), (128, 512, 5), (512, 1024, 5), (1024, 1024, 5), (1024, 1, 3)]
    lines = [(1, 128, 15), (32, 128, 41), (8, 256, 41), (16, 512, 41), (32, 1024, 41), (64, 1024, 41),
             (1024, 1024, 5), (1024, 1, 3)]  # fmt: skip
    period = sum(wide * width * kernel + 2 * width for wide, width, kernel in columns)
    scale = sum(wide * width * kernel + 2 * width for wide, width, kernel in lines)
    lengths = sum(width for _, width, _ in lines)  # spectral norm has none
    assert sizes == [5 * period, 3 * scale - lengths]
    assert [round(size / 1e6, 1) for size in sizes] == [41.1, 29.6]


@pytest.mark.parametrize("period", [2, 3, 11])
def test_a_period_is_folded_into_columns(period):
    """8960 samples in columns, four of five layers a third as long, the width of the fold kept."""
    verdict = PeriodDiscriminator(period, narrow=16)(torch.randn(2, 8960))
    rows = [-(-8960 // period)]
    for _ in range(4):
        rows.append((rows[-1] - 1) // 3 + 1)
    rows = [*rows[1:], rows[-1], rows[-1]]
    assert [tuple(each.shape) for each in verdict.features] == [
        (2, width, row, period) for width, row in zip((2, 8, 32, 64, 64, 1), rows, strict=True)
    ]
    assert verdict.scores.shape == (2, rows[-1] * period)


def test_a_scale_is_shortened_64_times():
    verdict = ScaleDiscriminator(spectral=False, narrow=8)(torch.randn(2, 8960))
    assert [each.shape[-1] for each in verdict.features] == [8960, 4480, 2240, 560, 140, 140, 140, 140]
    assert verdict.scores.shape == (2, 140)


def test_eight_discriminators_judge_and_equal_sounds_look_equal():
    torch.manual_seed(0)
    judges = Discriminators(narrow=32).eval()
    sound = torch.randn(1, 2048)
    real, made = judges(sound), judges(sound.clone())
    assert len(real) == 8
    assert discriminators.feature_loss(real, made) == 0
    assert discriminators.feature_loss(real, judges(torch.randn(1, 2048))) > 0


def test_the_discriminators_learn_to_tell_noise_from_a_tone():
    torch.manual_seed(0)
    judges = Discriminators(narrow=32)
    optimiser = torch.optim.AdamW(judges.parameters(), lr=2e-3, betas=(0.8, 0.99))
    tone = torch.sin(torch.arange(2048) * 0.2)[None]
    losses = []
    for _ in range(15):
        loss = discriminators.discriminator_loss(judges(tone), judges(0.5 * torch.randn(1, 2048)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    noise = judges(0.5 * torch.randn(1, 2048))
    assert discriminators.adversarial_loss(noise) > discriminators.adversarial_loss(judges(tone))
