"""Units of an answer, by what the voice's units are: those that its training found."""

import argparse
import json

import numpy as np
import torch

from omni.model import tiny
from omni.model.encoder import Encoder
from omni.train import units, voice_units
from omni.train.answers import Recordings
from omni.train.unit_reader import VoiceReader, WhisperReader, load

TEXTS = ["The capital of France is Paris.", "Dogs work with people.", "What a lovely day it is outside!"]


def test_the_voices_own_units_follow_from_the_text(tmp_path):
    """A text gets the units that it got when they were learnt, frame by frame, whatever the sound."""
    rows = [{"instruction": "Speak.", "response": text, "kind": "factual"} for text in TEXTS]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parser = argparse.ArgumentParser()
    voice_units.add_arguments(parser)
    words = ("--answers", str(tmp_path / "answers.jsonl"), "--voice", str(tmp_path / "voice"), "--num-units", "60")
    assert voice_units.main(parser.parse_args(words)) == 0
    recordings = Recordings(tmp_path / "voice")
    codes = recordings.split_frames(np.load(tmp_path / "voice" / "codes.npy"))
    reader = load(tmp_path / "voice" / "units.safetensors")
    assert isinstance(reader, VoiceReader)
    assert len(recordings.rows) == len(TEXTS)
    for row, frames in zip(recordings.rows, codes, strict=True):
        assert reader(np.zeros(0, np.float32), row["text"]) == frames.tolist()
        assert max(frames) < reader.num_units


def test_whispers_units_are_read_off_the_sound():
    """The nearest centroid of every 20 ms; what is longer than the positions that were learnt is too long."""
    torch.manual_seed(0)
    encoder = Encoder(tiny.ENCODER_DIMS).eval()
    width = tiny.ENCODER_DIMS.width
    learnt = units.Units(1, torch.zeros(40, width), torch.eye(width), torch.randn(9, width))
    reader = WhisperReader(learnt, encoder)
    sound = np.random.default_rng(0).standard_normal(320 * 12 + 100).astype(np.float32) * 0.1
    states = units.encode(encoder, [sound[: 320 * 12]], [1])[1][0]
    assert reader(sound) == torch.cdist(states.half().float(), learnt.centroids).argmin(1).tolist()
    assert (reader.num_units, reader.longest) == (9, 320 * 40)
