"""A training that is killed, at whatever point, ends where an undisturbed one does: nothing lost, nothing repeated."""

import json
import subprocess
import sys
import time

import tone_voice
import torch
from safetensors.torch import load_file, save_file

from omni.train.base_llm import write_tiny
from omni.train.shapes import SHAPES

DEADLINE = 240.0  # seconds, for a process to come so far


def write_states(folder, recordings) -> None:
    """Made-up states: a token a letter, as stage 2's first step would keep them."""
    draw = torch.Generator().manual_seed(0)
    lengths = [len(row["text"]) + 1 for row in recordings.rows]
    tensors = {
        "hidden": torch.randn(sum(lengths), SHAPES["small"].llm["hidden_size"], generator=draw).half(),
        "lengths": torch.tensor(lengths),
        "recording": torch.arange(len(lengths)),
        "agreed": torch.ones(len(lengths)),
    }
    folder.mkdir()
    save_file(tensors, folder / "states.safetensors")
    ends = []
    for row in recordings.rows:
        words = [(i, (j + 1) / len(word)) for i, word in enumerate(row["text"].split()) for j in range(len(word))]
        letters = iter(words)
        places, last = [], (0, 0.0)
        for letter in row["text"]:
            last = last if letter == " " else next(letters)
            places.append(last)
        ends.append(places)
    (folder / "token_ends.json").write_text(json.dumps(ends))


def steps_of(state) -> int:
    return torch.load(state, weights_only=True)["steps"] if state.exists() else 0


def finish(argv: list[str]) -> None:
    """In a process of its own, as the killed ones: sums depend on a process's threads, in their last bit."""
    assert subprocess.run([sys.executable, "-m", "omni.cli", *argv], timeout=DEADLINE).returncode == 0


def test_stage_2_killed_twice_ends_as_if_undisturbed(tmp_path):
    write_states(tmp_path / "states", tone_voice.write(tmp_path, ["abc defg h", "hgf edc ba", "ad cf eb", "bb aa"]))
    write_tiny(tmp_path / "llm")
    argv = ["train", "stage2", "train", "--states", str(tmp_path / "states"), "--voice", str(tmp_path), "--llm",
            str(tmp_path / "llm"), "--shape", "(1,32,2,64)", "--batch", "2", "--heldout", "0", "--minutes", "1000",
            "--aligned-minutes", "400", "--steps", "120"]  # fmt: skip
    finish([*argv, "--output", str(tmp_path / "whole")])

    disturbed = [*argv, "--output", str(tmp_path / "killed"), "--save-every", "0"]
    state = tmp_path / "killed" / "training.pt"
    for least in (5, 15):
        process = subprocess.Popen([sys.executable, "-m", "omni.cli", *disturbed])
        end = time.monotonic() + DEADLINE
        try:
            while steps_of(state) < least and process.poll() is None and time.monotonic() < end:
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
        assert least <= steps_of(state) < 120
    finish(disturbed)
    assert steps_of(state) == 120
    whole, killed = (load_file(tmp_path / name / "unit_decoder.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
