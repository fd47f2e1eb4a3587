"""Spoken data from any instructions: what can be said, what is heard back, and the same however a run went."""

import json

import numpy as np
import pytest
import soundfile
from test_manifest import ManifestError

from omni.train import batches, instruct
from omni.train.instruct import Maker, Settings
from omni.train.speakable import speakable

SETTINGS = Settings(("a", "b"), seed=0, word_errors=0.3)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("**Paris** has 2 airports:\n- CDG\n- Orly", "Paris has two airports: CDG, Orly."),
        ("It rose 5% in 1969 (see [here](http://x.y)).", "It rose five percent in nineteen sixty nine."),
        ("Pay $3.50 & go!", "Pay three point five zero dollars and go!"),
        ("One. " + "word " * 50, "One."),
        ("```python\nx = 1\n```", None),
        ("你好", None),
    ],
    ids=["list", "symbols", "money", "too long", "code", "other script"],
)
def test_what_is_written_can_be_said_or_is_left_out(written, said):
    assert speakable(written, limit=20) == said


def maker(settings=SETTINGS) -> Maker:
    """Voices whose sound is as long as the text, and ears that hear the last text said, all but "mumble"."""
    said: list[str] = []

    def voice(text, draw=None):
        said.append("" if "mumble" in text else text)
        return (draw or np.random.default_rng(0)).standard_normal(400 * len(text)).astype(np.float32) * 0.1

    waiting = iter(lambda: said.pop(0), None)
    return Maker(settings, {"a": voice, "b": voice}, voice, lambda samples: next(waiting))


@pytest.fixture
def sources(tmp_path):
    rows = [("Say 2 words.", "Good day."), ("mumble", "Well."), ("你好", "Hi"), ("Who are you?", "A friend.")]
    lines = [json.dumps({"instruction": a, "response": b}) for a, b in rows]
    (tmp_path / "in.jsonl").write_text("\n".join(["{", *lines]))
    with pytest.raises(ManifestError, match="line 1: no JSON"):
        instruct.read_sources([tmp_path / "in.jsonl"], "refuse", True)
    found, num_bad = instruct.read_sources([tmp_path / "in.jsonl"], "skip", True)
    assert num_bad == 1 and [source.line for source in found] == [2, 3, 4, 5]
    return found


def test_rows_are_filtered_counted_and_trainable(sources, tmp_path):
    made = [maker().make(i, source, tmp_path) for i, source in enumerate(sources)]
    rows = instruct.finish(tmp_path, made, SETTINGS, 1)
    assert [row["instruction"] for row in rows] == ["Say two words.", "Who are you?"]
    card = (tmp_path / "card.md").read_text()
    assert "2 rows of 4" in card and "not heard back: 1" in card and "cannot be said: 1" in card
    assert soundfile.info(tmp_path / rows[0]["audio"]).samplerate == 16_000
    read, bad = batches.read_rows(tmp_path / "manifest.jsonl", 1000, need_units=False)
    assert [row.response for row in read] == ["Good day.", "A friend."] and bad == []


def test_a_row_is_the_same_whoever_makes_it_and_is_made_once(sources, tmp_path):
    """In another order, in another folder: the same bytes. In the same folder it is not made again."""
    for folder, order in ((tmp_path / "x", (0, 3)), (tmp_path / "y", (3, 0))):
        for i in order:
            maker().make(i, sources[i], folder)
    for name in ("questions/0000000.flac", "answers/0000003.flac", "rows/0000003.json"):
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()
    silent = maker()
    silent.ask = {}
    assert silent.make(0, sources[0], tmp_path / "x")["id"] == "0000000"


def test_other_settings_take_another_folder(tmp_path):
    instruct._same_settings(tmp_path, SETTINGS)
    instruct._same_settings(tmp_path, SETTINGS)
    with pytest.raises(ManifestError, match="take another folder"):
        instruct._same_settings(tmp_path, Settings(("a",), 1, 0.3))
