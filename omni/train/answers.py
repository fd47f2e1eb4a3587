"""Texts → what the answering voice says, and when: samples and the phones with their times. Knows no units.

The voice is hibari-tts' own (Apache-2.0; `pip install --no-deps hibari-tts==0.2.1`): one speaker, about a hundred times
faster than real time on a core. Its network decides how long each phone lasts; that tensor is made an output here, so
every recording comes with an exact alignment.

With `level`, the voice speaks on one note of that many Hz, its periods locked to the 20 ms frames (so it must be a
multiple of 50). The waveform is then a function of the frames alone, apart from noise, and a small vocoder learns it by
regression in minutes, where a free pitch takes adversarial training.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import soxr
from tqdm import tqdm

from omni.audio.wav import SAMPLE_RATE

DURATIONS = b"/Clip_output_0"  # inside hibari's graph: frames of each phone
SAMPLES_PER_FRAME = 320
LEAD_FRAMES = 3  # the silence it starts with is cut to this: the listener waits for it
VOICED_HZ = 40.0  # hibari's F0 is below this where there is none


@dataclass(frozen=True)
class Spoken:
    """One recording and its alignment. Words are the text's, split at white space."""

    text: str
    samples: np.ndarray  # (S,) float32, 16 kHz, S a multiple of 320
    phones: str  # one letter each, white space between words, hibari's alphabet
    ends: np.ndarray  # (len(phones),) seconds at which each one ends
    word_ends: np.ndarray | None  # (words,) seconds; None where spoken words are not the written ones (numbers)


class AnsweringVoice:
    """spoken = AnsweringVoice(level=200.0)("The capital of France is Paris.")"""

    def __init__(self, level: float | None = None) -> None:
        from hibari import Hibari
        from hibari.voices import DEFAULT, voice_path

        if level is not None and level % 50:
            raise ValueError(f"level is {level} Hz; whole periods fit a frame of 20 ms only at multiples of 50 Hz.")
        self.level = level
        with open(voice_path(DEFAULT), "rb") as file:
            graph = with_output(file.read(), DURATIONS)
        self.hibari = Hibari(model=graph)

    def __call__(self, text: str, seed: int = 0) -> Spoken:
        rng = np.random.default_rng(seed)
        sounds, phones = [np.zeros(0, np.float32)], ""
        ends: list[float] = []
        for sentence in self.hibari.phonemize(text):
            known = "".join(phone for phone in sentence if phone in self.hibari.vocab)
            sound, shares = self._say(known, rng)
            start = sum(map(len, sounds))
            if not phones:  # the pads at both ends are silence
                cut = max(0, int(shares[0] * len(sound)) // SAMPLES_PER_FRAME - LEAD_FRAMES) * SAMPLES_PER_FRAME
                sound, shares = sound[cut:], (shares * len(sound) - cut) / (len(sound) - cut)
            phones += f" {known} "
            ends.extend((start + shares * len(sound)) / SAMPLE_RATE)
            sounds.append(np.pad(sound, (0, -len(sound) % SAMPLES_PER_FRAME)))
        times = np.asarray(ends)
        return Spoken(text, np.concatenate(sounds), phones, times, ends_of_words(text, phones, times))

    def _say(self, phones: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """One sentence: samples at 16 kHz, and where each phone ends, pads included, as a share of the whole."""
        from hibari import dsp

        ids = np.asarray([self.hibari.ids(phones)], np.int64)
        *parts, frames = self.hibari.sess.run(None, {"ids": ids, "speed": np.ones(1, np.float32)})
        parts = [part[0] for part in parts]
        sound = dsp.synth(*parts, rng) if self.level is None else _synthesise_level(dsp, parts, self.level, rng)
        samples = soxr.resample(sound, dsp.SR, SAMPLE_RATE).astype(np.float32)
        return samples, np.cumsum(frames.reshape(-1)) / frames.sum()


def _synthesise_level(dsp, parts: list[np.ndarray], level: float, rng: np.random.Generator) -> np.ndarray:
    """hibari's own synthesis (dsp.synth), with the pulses of a constant F0 wherever its F0 says there is voice."""
    harmonic, turn, noise, free, phase, f0 = parts
    pulses = dsp.pulses(np.full(len(f0), level, np.float32)) * np.repeat(f0 > VOICED_HZ, dsp.HOP)
    spectrum = dsp.stft(pulses, len(f0)) * dsp.ex(harmonic) * np.exp(1j * np.pi * np.tanh(turn))
    spectrum += rng.standard_normal((*noise.shape, 2), dtype=np.float32).view(np.complex64)[..., 0] * dsp.ex(noise)
    spectrum += dsp.ex(free) * np.exp(1j * phase)
    return dsp.ola(spectrum.astype(np.complex64))


def ends_of_words(text: str, phones: str, ends: np.ndarray) -> np.ndarray | None:
    lasts = [i for i, (phone, after) in enumerate(pairwise(phones)) if phone != " " == after]
    return ends[lasts] if len(lasts) == len(text.split()) else None


def with_output(model: bytes, tensor: bytes) -> bytes:
    """An ONNX file that also returns an inner tensor.

    Protocol buffers merge a message that occurs twice, so it is enough to append ModelProto.graph (field 7) holding
    nothing but one more GraphProto.output (12) with its ValueInfoProto.name (1).
    """
    for field in (1, 12, 7):
        assert len(tensor) < 128, "longer lengths take more than one byte"
        tensor = bytes([field << 3 | 2, len(tensor)]) + tensor
    return model + tensor


class Recordings:
    """A folder of spoken texts: speech.npy, all samples as int16 end to end, and speech.jsonl, a line for each.

    recordings = Recordings.write(folder, texts, AnsweringVoice(level=200.0))
    recordings.samples(3)      # (S,) float32
    recordings.rows[3]         # {"text": …, "samples": …, "phones": …, "ends": […], "word_ends": […] or null}
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        with (self.folder / "speech.jsonl").open() as file:
            self.rows = [json.loads(line) for line in file]
        self.starts = np.concatenate(([0], np.cumsum([row["samples"] for row in self.rows])))
        self.samples_per_frame = (
            self.rows[0].get("samples_per_frame", SAMPLES_PER_FRAME) if self.rows else SAMPLES_PER_FRAME
        )

    @cached_property
    def _all_samples(self) -> np.ndarray:
        return np.load(self.folder / "speech.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self.rows)

    def samples(self, number: int) -> np.ndarray:
        return self._all_samples[self.starts[number] : self.starts[number + 1]].astype(np.float32) / 32767

    @property
    def frame_seconds(self) -> float:
        return self.samples_per_frame / SAMPLE_RATE

    def num_frames(self, number: int) -> int:
        return self.rows[number]["samples"] // self.samples_per_frame

    def split_frames(self, frames: np.ndarray) -> list[np.ndarray]:
        """Something of every frame of all recordings, end to end → a piece for each recording."""
        return np.split(frames, self.starts[1:-1] // self.samples_per_frame)

    @classmethod
    def write(cls, folder: Path, texts: Iterable[dict], voice: AnsweringVoice, longest: float = 12.0) -> "Recordings":
        """Speak every {"text": …, …}; what lasts under half a second or over `longest` seconds is left out."""
        folder.mkdir(parents=True, exist_ok=True)
        sounds, lines = [], []
        for row in tqdm(list(texts), desc="speaking", disable=None):
            spoken = voice(row["text"])
            if not 0.5 <= len(spoken.samples) / SAMPLE_RATE <= longest:
                continue
            sounds.append((np.clip(spoken.samples, -1, 1) * 32767).astype(np.int16))
            times = [None if each is None else np.round(each, 4).tolist() for each in (spoken.ends, spoken.word_ends)]
            alignment = {"phones": spoken.phones, "ends": times[0], "word_ends": times[1]}
            lines.append(json.dumps(row | {"samples": len(spoken.samples)} | alignment, ensure_ascii=False))
        np.save(folder / "speech.npy", np.concatenate(sounds))
        (folder / "speech.jsonl").write_text("\n".join(lines) + "\n")
        return cls(folder)
