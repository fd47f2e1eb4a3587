"""Units → waveform by source and filter: pulses at a predicted pitch, shaped by predicted spectra, for ragged batches.

    vocoder = checkpoint.load(directory)                 # config.json says "generator": "source_filter"
    durations = vocoder.durations(units, lengths)        # frames of 25 ms that each unit lasts
    samples = vocoder(units, durations, lengths)         # 16 kHz

A convolutional decoder says two spectra at every half frame: by how much a train of pulses is louder, and turned, at
each frequency; and what sounds beside it (breath, consonants), amplitude and phase. Pitch has a phase of its own, so
nothing has to guess where in its cycle the voice is, which is what makes CodeHiFiGAN need a discriminator. That phase
is the one thing which a piece of an answer has to know of what came before: `vocode` takes it and gives it back.

Source: the two branches and the decoder's blocks are those of hibari-tts (Apache-2.0), whose weights training starts
from; ConvNeXt blocks, Liu et al. 2022; source and filter, Wang et al. 2019 (arXiv 1904.12088).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad
from torch.nn.utils.rnn import pad_sequence

from omni.vocoder.durations import DurationPredictor, UnitVocoder
from omni.vocoder.hifigan import Padding, VocoderConfigError

KEYS = (
    *("num_embeddings", "embedding_dim", "code_hop_size", "sampling_rate"),
    *("dur_predictor_params", "prosody", "decoder"),
)
HALVES = 2  # spectra in a frame
WINDOWS = 4  # hops in a spectrum's window
LOUDEST = 7.0  # log amplitude at which spectra are cut
TOP_HZ = 7800.0  # no harmonic above it
UNVOICED_HZ, VOICED_HZ = 30.0, 50.0  # pulses fade in between
LOWEST_HZ = 40.0  # the phase goes on at this rate where there is no voice
F0_SCALE, LOG_SCALE, ENERGY_SCALE = 100.0, 5.0, 5.0  # what a prediction of 1 means; what the decoder divides by


class Block(nn.Module):
    """ConvNeXt: a convolution in time, channel by channel, then two linear layers; added to its input (B, C, T).

    `reach`: how many earlier and how many later positions the convolution sees.
    """

    def __init__(self, width: int, hidden: int, reach: Sequence[int]) -> None:
        super().__init__()
        self.reach = tuple(reach)
        self.gamma = nn.Parameter(torch.ones(width))
        self.dw = nn.Conv1d(width, width, sum(reach) + 1, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pw1 = nn.Linear(width, hidden)
        self.pw2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, inside: Padding) -> Tensor:
        y = self.norm(self.dw(pad(x, self.reach)).transpose(1, 2))
        return inside(x + (self.gamma * self.pw2(gelu(self.pw1(y)))).transpose(1, 2))


class Stack(nn.Module):
    """(B, C_in, T) → (B, C_out, T): a convolution, blocks, a norm and a linear layer. `reach` of each, as in Block."""

    def __init__(self, width_in: int, width_out: int, width: int, hidden: int, reach: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.reach = tuple(reach[0])
        self.conv = nn.Conv1d(width_in, width, sum(reach[0]) + 1)
        self.blocks = nn.ModuleList(Block(width, hidden, each) for each in reach[1:])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, width_out)

    def forward(self, x: Tensor, inside: Padding) -> Tensor:
        x = inside(self.conv(pad(inside(x), self.reach)))
        for block in self.blocks:
            x = block(x, inside)
        return inside(self.head(self.norm(x.transpose(1, 2))).transpose(1, 2))


class SourceFilter(UnitVocoder):
    """See UnitVocoder; `vocode` makes pieces of answers."""

    window: Tensor

    def __init__(self, config: Mapping[str, Any]) -> None:
        missing = [key for key in KEYS if key not in config]
        if missing:
            raise VocoderConfigError(f"a vocoder by source and filter needs {', '.join(missing)} in its config.json.")
        super().__init__()
        self.config = config
        self.samples_per_frame = int(config["code_hop_size"])
        if self.samples_per_frame % HALVES:
            raise VocoderConfigError(f"code_hop_size {self.samples_per_frame} is not a multiple of {HALVES}.")
        self.hop = self.samples_per_frame // HALVES
        self.sampling_rate = config["sampling_rate"]
        self.bins = WINDOWS * self.hop // 2 + 1
        width = config["embedding_dim"]
        self.dict = nn.Embedding(config["num_embeddings"], width)
        shape = config["dur_predictor_params"]
        self.dur_predictor = DurationPredictor(width, shape["var_pred_hidden_dim"], shape["var_pred_kernel_size"])
        self.prosody = Stack(width, 2 * HALVES, **config["prosody"])
        self.decoder = Stack(width + 2, 4 * self.bins, **config["decoder"])
        self.register_buffer("window", torch.hann_window(WINDOWS * self.hop), persistent=False)

    def forward(self, units: Tensor, durations: Tensor, lengths: Tensor | None = None) -> Tensor:
        """units (B, N), durations (B, N) in frames, lengths (B,) in units → samples (B, S): whole answers."""
        if lengths is not None:
            durations = Padding(lengths, units.shape[1])(durations[:, None])[:, 0]
        rows = [row.repeat_interleave(times) for row, times in zip(units, durations, strict=True)]
        num_frames = durations.sum(dim=1)
        start = torch.zeros_like(num_frames)
        return self.vocode(pad_sequence(rows, batch_first=True), num_frames, start, start.double(), start)[0]

    def vocode(
        self, frames: Tensor, lengths: Tensor, at: Tensor, phase: Tensor, until: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Pieces of answers: the unit of every frame (B, F), and lengths (B,) → samples (B, S), the phase at `until`.

        `phase` (B,) float64, in cycles, is the pulses' at the start of frame `at` (B,); `until` is a frame, too.
        """
        if frames.shape[1] == 0:
            return frames.new_zeros(frames.shape[0], 0, dtype=torch.float32), phase
        inside = Padding(lengths, frames.shape[1])
        embedded = inside(self.dict(self._checked(frames)).transpose(1, 2))  # (B, C, F)
        f0, energy = self.melody(embedded, inside)
        spectra = self.spectra(embedded, f0, energy, inside)
        f0 = self._held(f0, lengths)
        cycles = self.cycles(f0)
        starts = cycles.gather(1, (at * self.samples_per_frame)[:, None])
        cycles = cycles - starts + phase[:, None]
        after = cycles.gather(1, (until * self.samples_per_frame)[:, None])[:, 0]
        halves, all_samples = inside.upsampled(HALVES), inside.upsampled(self.samples_per_frame)
        pulses = all_samples(self.pulses(f0, cycles[:, 1:])[:, None])[:, 0]
        samples = self.sound(spectra, pulses, halves)
        return all_samples(samples[:, None])[:, 0], after - after.floor()

    def melody(self, embedded: Tensor, inside: Padding) -> tuple[Tensor, Tensor]:
        """(B, C, F) → pitch in Hz and energy, (B, 2F) each, of every half frame.

        When it serves, in float64: the phase adds up all pitches of an answer, and with them what rounding makes of one
        in a chunk of another width. In float32 one answer in twelve differed from the whole one by more than a step.
        """
        said = self.prosody(embedded.to(self.prosody.head.weight.dtype), inside)
        f0, energy = (x.transpose(1, 2).flatten(1) for x in said.split(HALVES, dim=1))
        return f0 * F0_SCALE, energy * ENERGY_SCALE

    def spectra(self, embedded: Tensor, f0: Tensor, energy: Tensor, inside: Padding) -> Tensor:
        """(B, C, F), (B, 2F), (B, 2F) → (B, 4 · bins, 2F): log gain and turn of the pulses, log amplitude and phase."""
        told = torch.stack((torch.log(1 + f0.clamp(min=0)) / LOG_SCALE, energy / ENERGY_SCALE), dim=1).to(embedded)
        x = torch.cat((embedded.repeat_interleave(HALVES, dim=-1), told), dim=1)
        return self.decoder(x, inside.upsampled(HALVES))

    def cycles(self, f0: Tensor) -> Tensor:
        """Pitch (B, 2F) → how many cycles have passed before every sample and after the last, (B, S + 1) float64."""
        return pad(self.pitch(f0).double().cumsum(dim=1) / self.sampling_rate, (1, 0))

    def pitch(self, f0: Tensor) -> Tensor:
        """(B, 2F) → the rate of pulses at every sample, (B, S) in Hz: on a line between the middles of half frames."""
        return self._lines(f0.clamp(min=LOWEST_HZ))

    def pulses(self, f0: Tensor, cycles: Tensor) -> Tensor:
        """All harmonics below TOP_HZ at amplitude 1, as a sum of cosines in closed form: (B, S).

        The highest fades in, and so does the voice, so that a pitch which differs in its last digits sounds the same.
        """
        rate = self.pitch(f0).float()
        angle = 2 * torch.pi * (cycles - cycles.floor()).float()
        count = TOP_HZ / rate
        whole = count.floor()
        half = torch.sin(angle / 2)
        close = half.abs() < 1e-3
        most = torch.sin((whole + 0.5) * angle) / (2 * torch.where(close, torch.ones_like(half), half))
        sums = torch.where(close, whole + 0.5, most) - 0.5
        sums = sums + (count - whole) * torch.cos((whole + 1) * angle)
        voiced = ((self._lines(f0).float() - UNVOICED_HZ) / (VOICED_HZ - UNVOICED_HZ)).clamp(0, 1)
        return sums * voiced

    def sound(self, spectra: Tensor, pulses: Tensor, inside: Padding) -> Tensor:
        """(B, 4 · bins, 2F), (B, S) → samples (B, S). `inside` is of half frames."""
        size = WINDOWS * self.hop
        gain, turn, level, phase = spectra.transpose(1, 2).split(self.bins, dim=-1)  # (B, 2F, bins)
        pieces = pad(pulses, (size // 2, size // 2)).unfold(1, size, self.hop)[:, : spectra.shape[-1]]
        voice = torch.fft.rfft(pieces * (self.window / (size / 4)))
        spectrum = voice * torch.polar(gain.clamp(max=LOUDEST).exp(), torch.pi * torch.tanh(turn))
        spectrum = spectrum + torch.polar(level.clamp(max=LOUDEST).exp(), phase)
        pieces = torch.fft.irfft(spectrum, size) * self.window
        return self._overlap_add(inside(pieces.transpose(1, 2)).transpose(1, 2))

    def _overlap_add(self, pieces: Tensor) -> Tensor:
        """(B, T, size), a hop apart, each around its own place → (B, T · hop); windows' squares add up to 1.5."""
        B, T, size = pieces.shape
        parts = pieces.reshape(B, T, WINDOWS, self.hop)
        out = pieces.new_zeros(B, T + WINDOWS - 1, self.hop)
        for i in range(WINDOWS):
            out[:, i : i + T] += parts[:, :, i]
        return out.flatten(1)[:, size // 2 : size // 2 + T * self.hop] / 1.5

    @staticmethod
    def _held(f0: Tensor, lengths: Tensor) -> Tensor:
        """(B, 2F) → the same, and past a row's end its last pitch, as if the row ended there."""
        last = f0.gather(1, (HALVES * lengths - 1).clamp(min=0)[:, None])
        return torch.where(torch.arange(f0.shape[1], device=f0.device) < HALVES * lengths[:, None], f0, last)

    def _lines(self, values: Tensor) -> Tensor:
        """(B, 2F) → (B, S): straight lines between the middles of half frames, level beyond the first and last."""
        place = (torch.arange(self.hop, device=values.device) + 0.5) / self.hop - 0.5  # of a sample in its half frame
        before, after = (
            pad(values[:, None], (1, 0), "replicate")[:, 0, :-1],
            pad(values[:, None], (0, 1), "replicate")[:, 0, 1:],
        )
        early = values[..., None] + (values - before)[..., None] * place  # place < 0
        late = values[..., None] + (after - values)[..., None] * place
        return torch.where(place < 0, early, late).flatten(1)
