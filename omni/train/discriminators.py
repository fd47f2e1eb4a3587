"""What tells a vocoder's sound from a recording: HiFi-GAN's discriminators, and the losses that follow. Knows no units.

    judges = Discriminators()
    real, made = judges(recording), judges(sound)          # sounds (B, S) → a Verdict of each discriminator
    discriminator_loss(real, made)                         # for the discriminators, of a detached sound
    adversarial_loss(made) + 2 * feature_loss(real, made)  # for the generator

Five discriminators see the waveform folded at a period (2, 3, 5, 7, 11 samples), three see it whole, halved and
quartered. Their sizes and names are the published ones (Kong et al., arXiv 2010.05646; jik876/hifi-gan, models.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, leaky_relu, pad
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

SLOPE = 0.1
PERIODS = (2, 3, 5, 7, 11)
PERIOD_WIDTHS = (32, 128, 512, 1024, 1024)
SCALE_LAYERS = (  # width, kernel, stride, groups
    (128, 15, 1, 1),
    (128, 41, 2, 4),
    (256, 41, 2, 16),
    (512, 41, 4, 16),
    (1024, 41, 4, 16),
    (1024, 41, 1, 16),
    (1024, 5, 1, 1),
)


@dataclass(frozen=True)
class Verdict:
    """Of one discriminator: a score for every stretch of sound, 1 for a recording, and what it saw on the way."""

    scores: Tensor  # (B, stretches)
    features: list[Tensor]  # every layer's output, the scores' too


class PeriodDiscriminator(nn.Module):
    """(B, S) → Verdict. Samples `period` apart stand in a column, and the convolutions run down the columns."""

    def __init__(self, period: int, narrow: int = 1) -> None:
        super().__init__()
        self.period = period
        widths = [1, *(width // narrow for width in PERIOD_WIDTHS)]
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(wide, narrower, (5, 1), (3 if i < 4 else 1, 1), padding=(2, 0)))
            for i, (wide, narrower) in enumerate(pairwise(widths))
        )
        self.conv_post = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, sound: Tensor) -> Verdict:
        B = len(sound)
        x = pad(sound[:, None], (0, -sound.shape[1] % self.period), "reflect")
        return _judge(self, x.view(B, 1, -1, self.period))  # (B, 1, S / period, period)


class ScaleDiscriminator(nn.Module):
    """(B, S) → Verdict. Grouped convolutions over the waveform."""

    def __init__(self, spectral: bool, narrow: int = 1) -> None:
        super().__init__()
        norm = spectral_norm if spectral else weight_norm
        layers, wide = [], 1
        for width, kernel, stride, groups in SCALE_LAYERS:
            width = max(width // narrow // 16, 1) * 16  # every number of groups divides it
            layers.append(norm(nn.Conv1d(wide, width, kernel, stride, padding=kernel // 2, groups=groups)))
            wide = width
        self.convs = nn.ModuleList(layers)
        self.conv_post = norm(nn.Conv1d(wide, 1, 3, padding=1))

    def forward(self, sound: Tensor) -> Verdict:
        return _judge(self, sound[:, None])


def _judge(discriminator: "PeriodDiscriminator | ScaleDiscriminator", x: Tensor) -> Verdict:
    features = []
    for conv in discriminator.convs:
        x = leaky_relu(conv(x), SLOPE)
        features.append(x)
    scores = discriminator.conv_post(x)
    return Verdict(scores.flatten(1), [*features, scores])


class Discriminators(nn.Module):
    """(B, S) → eight Verdicts. `narrow` divides every width: 1 is the published size, 70.7 M parameters."""

    def __init__(self, narrow: int = 1) -> None:
        super().__init__()
        self.periods = nn.ModuleList(PeriodDiscriminator(period, narrow) for period in PERIODS)
        self.scales = nn.ModuleList(ScaleDiscriminator(spectral=i == 0, narrow=narrow) for i in range(3))
        self.halve = nn.AvgPool1d(4, 2, padding=2)

    def forward(self, sound: Tensor) -> list[Verdict]:
        verdicts = [period(sound) for period in self.periods]
        for scale in self.scales:
            verdicts.append(scale(sound))
            sound = self.halve(sound[:, None])[:, 0]
        return verdicts


def discriminator_loss(real: Sequence[Verdict], made: Sequence[Verdict]) -> Tensor:
    """Least squares: a recording's scores towards 1, the vocoder's towards 0; summed over discriminators."""
    pairs = zip(real, made, strict=True)
    return torch.stack([(1 - r.scores).pow(2).mean() + m.scores.pow(2).mean() for r, m in pairs]).sum()


def adversarial_loss(made: Sequence[Verdict]) -> Tensor:
    """The vocoder's scores towards 1."""
    return torch.stack([(1 - m.scores).pow(2).mean() for m in made]).sum()


def feature_loss(real: Sequence[Verdict], made: Sequence[Verdict]) -> Tensor:
    """What the discriminators see of both: mean absolute difference, summed over layers and discriminators."""
    pairs = [pair for r, m in zip(real, made, strict=True) for pair in zip(r.features, m.features, strict=True)]
    return torch.stack([l1_loss(seen, wanted.detach()) for wanted, seen in pairs]).sum()
