"""Texts → what the answering voice is about to say: its network's own states, timing, pitch and energy. No sound yet.

    voice = VoiceStates()
    said = voice("The capital of France is Paris.")     # said.states (L, 128), said.frames (L,), said.f0 (2F,) …

The voice is hibari-tts' (Apache-2.0; `pip install --no-deps hibari-tts==0.2.1`). Its text encoder gives every phone a
state, its predictors a length in frames of 25 ms, and pitch and energy at every half frame; from these a convolutional
decoder makes spectra. Those inner tensors are made outputs here, and the decoder's weights can be taken out.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from omni.train.answers import ends_of_words, with_output

STATES, DURATIONS, ENERGY = b"/Transpose_22_output_0", b"/Clip_output_0", b"/Mul_62_output_0"
SAMPLES_PER_FRAME = 400  # 25 ms at 16 kHz: the step of the voice's durations
LEAD_FRAMES = 2  # the silence it starts with is cut to this: the listener waits for it
HOP_SHARE = 16_000 / 24_000  # the voice's own rate is 24 kHz; a spectrum's amplitudes grow with the window
BLOCKS, BINS, OWN_BINS = 8, 401, 601  # of its decoder; the bins below 8 kHz


class NothingToSay(ValueError):
    """A text without a sound: empty, or of signs alone."""


@dataclass(frozen=True)
class Said:
    """One text as the voice would say it. Words are the text's, split at white space."""

    text: str
    phones: str  # one letter each, white space between words, hibari's alphabet
    states: np.ndarray  # (L, 128) float32, of every phone
    frames: np.ndarray  # (L,) int64: how long it lasts
    f0: np.ndarray  # (2F,) Hz at every half frame, about 0 where there is no voice
    energy: np.ndarray  # (2F,)

    @property
    def ends(self) -> np.ndarray:
        """(L,) seconds at which each phone ends."""
        return np.cumsum(self.frames) * SAMPLES_PER_FRAME / 16_000

    @property
    def word_ends(self) -> np.ndarray | None:
        """(words,) seconds; None where spoken words are not the written ones (numbers)."""
        return ends_of_words(self.text, self.phones, self.ends)


class VoiceStates:
    def __init__(self) -> None:
        from hibari import Hibari

        graph = _graph()
        for tensor in (STATES, DURATIONS, ENERGY):
            graph = with_output(graph, tensor)
        self.hibari = Hibari(model=graph)
        self.names = [tensor.decode() for tensor in (STATES, DURATIONS)] + ["f0", ENERGY.decode()]

    def __call__(self, text: str) -> Said:
        phones = ""
        parts: list[tuple[np.ndarray, ...]] = []
        for sentence in self.hibari.phonemize(text):
            known = "".join(phone for phone in sentence if phone in self.hibari.vocab)
            ids = np.asarray([self.hibari.ids(known)], np.int64)
            inputs = {"ids": ids, "speed": np.ones(1, np.float32)}
            (states,), frames, (f0,), (energy,) = self.hibari.sess.run(self.names, inputs)
            frames = frames.reshape(-1).astype(np.int64)
            if not phones:  # the pads at both ends are silence
                cut = max(0, int(frames[0]) - LEAD_FRAMES)
                frames = np.concatenate(([frames[0] - cut], frames[1:]))
                f0, energy = f0[2 * cut :], energy[2 * cut :]
            phones += f" {known} "
            parts.append((states.T, frames, f0, energy))
        if not parts:
            raise NothingToSay(f"{text!r} has nothing to say.")
        return Said(text, phones, *(np.concatenate(column) for column in zip(*parts, strict=True)))


def decoder_weights() -> dict[str, Tensor]:
    """The voice's decoder, float32, under source_filter.Stack's names, below 8 kHz.

    Its matrices are kept as int8 with one scale each. A fifth part of its head, noise, is silent (36 dB below the free
    branch) and left out. Amplitudes are those of a window of 800 samples at 16 kHz.
    """
    plain = {"conv.weight": "m.dec_in.weight", "conv.bias": "m.dec_in.bias"}
    plain |= {"norm.weight": "m.dec_norm.weight", "norm.bias": "m.dec_norm.bias", "head.bias": "m.head.bias"}
    matrices = {"head.weight": "/head"}
    for i in range(BLOCKS):
        for name in ("gamma", "dw.weight", "dw.bias", "norm.weight", "norm.bias", "pw1.bias", "pw2.bias"):
            plain[f"blocks.{i}.{name}"] = f"m.dec.{i}.{name}"
        for name in ("pw1", "pw2"):
            matrices[f"blocks.{i}.{name}.weight"] = f"/dec.{i}/{name}"
    parts = ("quantized", "scale", "zero_point")
    names = [*plain.values(), *(f"{matrix}/Transpose_output_0_{x}" for matrix in matrices.values() for x in parts)]
    found = _tensors(names)
    weights = {ours: found[theirs] for ours, theirs in plain.items()}
    for ours, theirs in matrices.items():
        whole, scale, zero = (found[f"{theirs}/Transpose_output_0_{x}"] for x in parts)
        weights[ours] = ((whole.astype(np.float32) - zero) * scale).T
    rows = np.concatenate([np.arange(BINS) + part * OWN_BINS for part in (0, 1, 3, 4)])
    weights["head.weight"], weights["head.bias"] = weights["head.weight"][rows], weights["head.bias"][rows].copy()
    for part in (0, 2):  # log amplitudes
        weights["head.bias"][part * BINS : (part + 1) * BINS] += np.log(HOP_SHARE)
    return {name: torch.from_numpy(np.array(x, np.float32)) for name, x in weights.items()}


def _tensors(names: list[str]) -> dict[str, np.ndarray]:
    """Constants inside hibari's graph: made outputs, and asked for with the shortest of inputs."""
    from hibari import Hibari

    graph = _graph()
    for name in names:
        graph = with_output(graph, name.encode())
    inputs = {"ids": np.array([[0, 1, 0]]), "speed": np.ones(1, np.float32)}
    return dict(zip(names, Hibari(model=graph).sess.run(names, inputs), strict=True))


def _graph() -> bytes:
    from hibari.voices import DEFAULT, voice_path

    with open(voice_path(DEFAULT), "rb") as file:
        return file.read()
