"""Shards of spoken questions: whole, in order, and made once."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from omni.audio import mel
from omni.train import speech
from omni.train.instructions import Example


def test_a_shard_gives_back_what_was_written(tmp_path):
    """Examples, voices and log-mel survive the file, in order."""
    mels = [torch.randn(10 * n, 8).half() for n in (3, 1)]
    spoken = [
        speech.Spoken(
            Example(f"Question {i}?", "Answer.", "factual", "group", ("Yes.",), "fact"),
            f"So, question {i}?",
            "hibari",
            each,
        )
        for i, each in enumerate(mels)
    ]
    speech.write_shard(tmp_path / "hibari-0000.safetensors", spoken)
    back = speech.read_all(tmp_path)
    assert [(each.example, each.text) for each in back] == [(each.example, each.text) for each in spoken]
    assert all(torch.equal(a.mel, b.mel) for a, b in zip(back, spoken, strict=True))


def test_a_stopped_run_goes_on_with_the_first_missing_shard(tmp_path, monkeypatch):
    """Existing shards are left as they are, missing ones are made as they would have been."""
    monkeypatch.setattr(speech, "SHARD", 2)
    monkeypatch.setattr(speech, "log_mel", lambda samples: torch.tensor(samples[:40]).reshape(5, 8).half())
    chosen = [Example(f"Question {i}?", "Answer.", "factual", "group") for i in range(5)]

    def voice(text, draw):
        return draw.standard_normal(2000).astype(np.float32)

    speech.write_shards(tmp_path, chosen, "hibari", 0, voice)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(whole) == [f"hibari-000{i}.safetensors" for i in range(3)]
    (tmp_path / "hibari-0001.safetensors").unlink()
    (tmp_path / "hibari-0000.safetensors").write_bytes(b"kept")
    speech.write_shards(tmp_path, chosen, "hibari", 0, voice)
    assert (tmp_path / "hibari-0000.safetensors").read_bytes() == b"kept"
    assert (tmp_path / "hibari-0001.safetensors").read_bytes() == whole["hibari-0001.safetensors"]


def test_log_mel_is_what_the_encoder_reads_when_it_serves():
    """True length, to the next tenth of a second, and as near as fp16 comes."""
    samples = np.random.default_rng(0).standard_normal(16_100).astype(np.float32) * 0.1
    found = speech.log_mel(samples)
    assert found.shape == (110, 80) and found.dtype == torch.float16
    torch.testing.assert_close(found.T.float(), mel.log_mel(mel.pad_to_embedding(samples), 80), atol=1e-3, rtol=1e-3)


def test_shards_of_encoder_states_are_refused_by_name(tmp_path):
    save_file({"frames": torch.zeros(5, 384)}, tmp_path / "old.safetensors", {"rows": "[]"})
    with pytest.raises(speech.ShardError, match=r"old\.safetensors"):
        speech.read_all(tmp_path)
