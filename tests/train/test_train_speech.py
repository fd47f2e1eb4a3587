"""Shards of spoken questions: whole, in order, and made once."""

import numpy as np
import torch

from omni.train import speech
from omni.train.instructions import Example


def test_a_shard_gives_back_what_was_written(tmp_path):
    """Examples, voices and frames survive the file, in order."""
    frames = [torch.randn(5 * n, 8).half() for n in (3, 1)]
    spoken = [
        speech.Spoken(
            Example(f"Question {i}?", "Answer.", "factual", "group", ("Yes.",), "fact"),
            f"So, question {i}?",
            "hibari",
            each,
        )
        for i, each in enumerate(frames)
    ]
    speech.write_shard(tmp_path / "hibari-0000.safetensors", spoken)
    back = speech.read_all(tmp_path)
    assert [(each.example, each.text) for each in back] == [(each.example, each.text) for each in spoken]
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(back, spoken, strict=True))


def test_a_stopped_run_goes_on_with_the_first_missing_shard(tmp_path, monkeypatch):
    """Existing shards are left as they are, missing ones are made as they would have been."""
    monkeypatch.setattr(speech, "SHARD", 2)
    monkeypatch.setattr(speech, "encode", lambda encoder, samples: torch.tensor(samples[:40]).reshape(5, 8).half())
    chosen = [Example(f"Question {i}?", "Answer.", "factual", "group") for i in range(5)]

    def voice(text, draw):
        return draw.standard_normal(2000).astype(np.float32)

    speech.write_shards(tmp_path, None, chosen, "hibari", 0, voice)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(whole) == [f"hibari-000{i}.safetensors" for i in range(3)]
    (tmp_path / "hibari-0001.safetensors").unlink()
    (tmp_path / "hibari-0000.safetensors").write_bytes(b"kept")
    speech.write_shards(tmp_path, None, chosen, "hibari", 0, voice)
    assert (tmp_path / "hibari-0000.safetensors").read_bytes() == b"kept"
    assert (tmp_path / "hibari-0001.safetensors").read_bytes() == whole["hibari-0001.safetensors"]
