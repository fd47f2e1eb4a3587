"""Features at the frame rate → waveform: HiFi-GAN's generator, for ragged batches. Knows nothing of units.

Source: jik876/hifi-gan and facebookresearch/fairseq, hifigan.py; the names are theirs, so that published weights load
as they are. Weight norm is folded when a checkpoint is read (vocoder/checkpoint.py); the module holds plain weights.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

SLOPE = 0.1
LAST_SLOPE = 0.01  # before conv_post the published generator uses torch's default


class VocoderConfigError(ValueError):
    """A vocoder's config.json asks for a generator that does not exist."""


class Padding:
    """What each row of a ragged batch would have seen alone: zeros past its end, after every layer.

    inside = Padding(lengths, num_frames)    # lengths (B,), or None where all rows are full
    x = inside(conv(x))
    inside = inside.upsampled(8)
    """

    def __init__(self, lengths: Tensor | None, size: int) -> None:
        self.lengths, self.size = lengths, size
        self.mask: Tensor | None = None
        if lengths is not None and bool((lengths < size).any()):
            self.mask = (torch.arange(size, device=lengths.device) < lengths[:, None])[:, None]  # (B, 1, size)

    def __call__(self, x: Tensor) -> Tensor:
        return x if self.mask is None else x * self.mask

    def upsampled(self, rate: int) -> "Padding":
        return Padding(None if self.mask is None or self.lengths is None else self.lengths * rate, self.size * rate)


class ResBlock(nn.Module):
    """Pairs of a dilated and a plain convolution, each pair added to its input: (B, C, T) → (B, C, T)."""

    def __init__(self, channels: int, kernel: int, dilations: list[int]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(_same_conv(channels, kernel, dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(_same_conv(channels, kernel, 1) for _ in dilations)

    def forward(self, x: Tensor, inside: Padding) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            y = inside(dilated(leaky_relu(x, SLOPE)))
            x = x + inside(plain(leaky_relu(y, SLOPE)))
        return x


class Generator(nn.Module):
    """vocode(features (B, C, F), lengths (B,) in frames or None) → samples (B, F · samples_per_frame) in (-1, 1).

    A shorter row of a batch gets what it would get alone, and zeros after its end.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        rates, kernels = config["upsample_rates"], config["upsample_kernel_sizes"]
        for rate, kernel in zip(rates, kernels, strict=True):
            if kernel < rate or (kernel - rate) % 2:
                raise VocoderConfigError(
                    f"upsample_kernel_sizes {kernels} do not fit upsample_rates {rates}: "
                    f"{kernel} - {rate} must be even and not negative."
                )
        self.rates = rates
        self.samples_per_frame = math.prod(rates)
        self.kernels_per_stage = len(config["resblock_kernel_sizes"])
        widths = [config["upsample_initial_channel"] // 2**i for i in range(len(rates) + 1)]
        self.conv_pre = nn.Conv1d(config["model_in_dim"], widths[0], 7, padding=3)
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(wide, narrow, kernel, rate, padding=(kernel - rate) // 2)
            for wide, narrow, kernel, rate in zip(widths[:-1], widths[1:], kernels, rates, strict=True)
        )
        shapes = list(zip(config["resblock_kernel_sizes"], config["resblock_dilation_sizes"], strict=True))
        self.resblocks = nn.ModuleList(ResBlock(width, *shape) for width in widths[1:] for shape in shapes)
        self.conv_post = nn.Conv1d(widths[-1], 1, 7, padding=3)

    def vocode(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        if features.shape[-1] == 0:
            return features.new_zeros(features.shape[0], 0, dtype=torch.float32)
        inside = Padding(lengths, features.shape[-1])
        x = inside(self.conv_pre(inside(features.to(self.conv_pre.weight.dtype))))
        for i, (up, rate) in enumerate(zip(self.ups, self.rates, strict=True)):
            inside = inside.upsampled(rate)
            x = inside(up(leaky_relu(x, SLOPE)))
            first = i * self.kernels_per_stage
            x = sum(block(x, inside) for block in self.resblocks[first : first + self.kernels_per_stage])
            x = x / self.kernels_per_stage
        return inside(torch.tanh(self.conv_post(leaky_relu(x, LAST_SLOPE)))).squeeze(1).float()


def _same_conv(channels: int, kernel: int, dilation: int) -> nn.Conv1d:
    return nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=(kernel * dilation - dilation) // 2)
