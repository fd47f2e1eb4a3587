"""A manifest's bad rows: each is named with its line, refuses the whole or is skipped, and is counted."""

import json

import numpy as np
import pytest
import soundfile

from omni.train import manifest
from omni.train.manifest import ManifestError


@pytest.fixture
def folder(tmp_path):
    for name, rate, size in (("good", 16_000, 1600), ("slow", 8_000, 800), ("none", 16_000, 0)):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(size), rate)
    (tmp_path / "text.wav").write_text("no sound")
    return tmp_path


def parse(row, folder):
    text = manifest.text(row, "instruction")
    manifest.audio(row, "audio", folder, rate=16_000)
    manifest.units(row, "units", 100)
    return text


GOOD = {"audio": "good.wav", "instruction": "Hi", "units": [1, 99]}
BAD = {
    "no json": ("{", "no JSON"),
    "no object": ("[1]", "no JSON object"),
    "missing file": ({"audio": "gone.wav"}, "gone.wav is not there"),
    "wrong rate": ({"audio": "slow.wav"}, "slow.wav has a rate of 8000 Hz, not 16000 Hz"),
    "no samples": ({"audio": "none.wav"}, "none.wav has no samples"),
    "no audio": ({"audio": "text.wav"}, "text.wav is no audio"),
    "empty text": ({"instruction": "  "}, "instruction is '  '"),
    "no text": ({"instruction": None}, "instruction is missing"),
    "unit too large": ({"units": [3, 100]}, r"units\[1\] is 100, none of the units 0 … 99"),
    "unit negative": ({"units": [-1]}, r"units\[0\] is -1"),
    "unit no number": ({"units": [True]}, r"units\[0\] is True"),
    "no units": ({"units": []}, "units holds no units"),
    "same id": ({"id": "a"}, "id 'a' is line 1's"),
}


def write(folder, *rows):
    lines = [row if isinstance(row, str) else json.dumps(GOOD | row) for row in rows]
    (folder / "m.jsonl").write_text("\n".join(lines))
    return folder / "m.jsonl"


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_refuses_the_manifest_with_its_line(folder, name):
    row, words = BAD[name]
    with pytest.raises(ManifestError, match=rf"line 3: .*{words}"):
        manifest.read(write(folder, {"id": "a"}, "", row), parse)


@pytest.mark.parametrize("name", BAD)
def test_or_is_left_out_and_counted(folder, name, caplog):
    row, _ = BAD[name]
    path = write(folder, {"id": "a", "instruction": "one"}, row, {"instruction": "two"})
    rows, bad = manifest.read(path, parse, on_bad="skip")
    assert rows == ["one", "two"]
    assert [each.line for each in bad] == [2]
    assert "line 2" in caplog.text


def test_many_bad_rows_are_counted_not_listed(folder):
    with pytest.raises(ManifestError, match=r"and 3 more\n8 bad rows") as raised:
        manifest.read(write(folder, *["{"] * 8, {}), parse)
    assert str(raised.value).count("no JSON") == 5


def test_nothing_usable_is_an_error_even_when_skipping(folder):
    with pytest.raises(ManifestError, match=r"holds no usable rows \(2 bad\)"):
        manifest.read(write(folder, "{", "{"), parse, on_bad="skip")


def test_the_rows_own_rate_is_held_to_its_file(folder):
    path = write(folder, {"audio": "slow.wav", "rate": 16_000})
    with pytest.raises(ManifestError, match="8000 Hz, not 16000 Hz"):
        manifest.read(path, lambda row, here: manifest.audio(row, "audio", here))
