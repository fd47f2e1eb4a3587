"""A voice for tests: every letter is a tone of its own, six frames long; and a folder of its recordings."""

from pathlib import Path

import numpy as np
import torch

from omni.train.answers import Recordings, Spoken
from omni.train.units import Units

FRAMES_PER_LETTER, SAMPLES_PER_FRAME = 6, 320
LETTERS = " abcdefgh"


class ToneVoice:
    def __call__(self, text: str) -> Spoken:
        ends = np.arange(1, len(text) + 1) * FRAMES_PER_LETTER * 0.02
        time = np.arange(FRAMES_PER_LETTER * SAMPLES_PER_FRAME) / 16_000
        tones = [0.3 * np.sin(2 * np.pi * 200 * LETTERS.index(letter) * time) for letter in text]
        words = [i for i, letter in enumerate(text) if letter != " " and text[i + 1 : i + 2] in ("", " ")]
        return Spoken(text, np.concatenate(tones).astype(np.float32), text, ends, ends[words])


def write(folder: Path, texts: list[str]) -> Recordings:
    """Recordings with units: a letter's number, for each of its frames."""
    recordings = Recordings.write(folder, [{"text": text, "kind": "repeat"} for text in texts], ToneVoice())
    letters = [LETTERS.index(letter) for row in recordings.rows for letter in row["text"]]
    np.save(folder / "codes.npy", np.repeat(letters, FRAMES_PER_LETTER).astype(np.int16))
    num_units = len(LETTERS)
    Units(0, torch.zeros(1, 4), torch.zeros(4, 4), torch.randn(num_units, 4)).save(folder / "units.safetensors")
    return recordings
