"""The LLM answers written questions and misheard ones, and goes on where it was stopped."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_ear import NUM_MELS, WIDTH, encoder

from omni import cli
from omni.train import ear, own_answers, speech
from omni.train.base_llm import write_tiny
from omni.train.instructions import Example

SPOKEN = [("Say", "chitchat"), ("", "trivia"), ("Say", "factual"), ("Say", "follow-up")]  # the last is not asked alone


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ear, "whisper", encoder)
    write_tiny(tmp_path / "llm")
    (tmp_path / "speech").mkdir()
    torch.manual_seed(0)
    said = [
        speech.Spoken(Example(f"Ask {i}", response, kind, "g"), f"Ask {i}", "v", torch.randn(80, NUM_MELS).half())
        for i, (response, kind) in enumerate(SPOKEN)
    ]
    speech.write_shard(tmp_path / "speech" / "a.safetensors", said)
    adaptor = ear.new_adaptor(64, WIDTH, 0, "")
    ids = torch.tensor([*range(65, 91), 32], dtype=torch.int32)
    tokens = {"tokens.ids": ids, "tokens.blank": torch.randn(64).half()}
    save_file({name: x.half() for name, x in adaptor.state_dict().items()} | tokens, tmp_path / "adaptor.safetensors")
    return tmp_path


def own(monkeypatch: pytest.MonkeyPatch, run: Path, count: int) -> list[dict]:
    words = ["train", "own", "--output", str(run), "--adaptor", str(run / "adaptor.safetensors"), "--count", str(count)]
    monkeypatch.setattr("sys.argv", ["omni", *words])
    assert cli.main(words) == 0
    return [json.loads(line) for line in (run / "own.jsonl").read_text().splitlines()]


def test_half_of_the_questions_are_spoken_and_a_killed_run_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(own_answers, "TOGETHER", 2)
    rows = own(monkeypatch, run, 6)
    assert len(rows) == 6
    assert sorted(row["instruction"] for row in rows if row["instruction"].startswith("Ask")) == ["Ask 0", "Ask 2"]
    for row in rows:
        assert row["kind"] == "own"
        assert isinstance(row["response"], str)
        if row["instruction"].startswith("Ask"):
            assert len(row["prompt"]) > 8  # eight embeddings of speech, and the template around
    lines = (run / "own.jsonl").read_text().splitlines(keepends=True)
    (run / "own.jsonl").write_text("".join(lines[:4]) + lines[4][:10])
    assert own(monkeypatch, run, 6) == rows
    again = [json.loads(line) for line in (run / "repeats.jsonl").read_text().splitlines()]
    assert len({row["response"] for row in again}) == 5000
    assert all(row["instruction"].endswith(row["response"]) for row in again)
