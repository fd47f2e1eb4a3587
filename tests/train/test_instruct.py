"""Spoken data from any instructions: what can be said, what is heard back, and the same however a run went."""

import json

import numpy as np
import pytest
import soundfile
from test_manifest import ManifestError

from omni import cli
from omni.audio import wav
from omni.train import batches, dialogues, instruct
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


def maker(settings=SETTINGS, **more) -> Maker:
    """Voices whose sound is as long as the text, and ears that hear the last text said, all but "mumble"."""
    said: list[str] = []

    def voice(text, draw=None):
        said.append("" if "mumble" in text else text)
        return (draw or np.random.default_rng(0)).standard_normal(400 * len(text)).astype(np.float32) * 0.1

    waiting = iter(lambda: said.pop(0), None)
    return Maker(settings, {"a": voice, "b": voice}, voice, lambda samples: next(waiting), **more)


@pytest.fixture
def sources(tmp_path):
    rows = [("Say 2 words.", "Good day."), ("mumble", "Well."), ("你好", "Hi"), ("Who are you?", "A friend.")]
    lines = [json.dumps({"instruction": a, "response": b}) for a, b in rows]
    (tmp_path / "in.jsonl").write_text("\n".join(["{", *lines]))
    with pytest.raises(ManifestError, match="line 1: no JSON"):
        dialogues.read([tmp_path / "in.jsonl"], "refuse", True, 4)
    found, num_bad = dialogues.read([tmp_path / "in.jsonl"], "skip", True, 4)
    assert num_bad == 1 and [source.line for source in found] == [2, 3, 4, 5]
    return found


def test_rows_are_filtered_counted_and_trainable(sources, tmp_path):
    made = [maker().make(i, source, tmp_path) for i, source in enumerate(sources)]
    rows = instruct.finish(tmp_path, made, SETTINGS, 1)
    assert [row["instruction"] for row in rows] == ["Say two words.", "Who are you?"]
    card = (tmp_path / "card.md").read_text()
    assert "2 rows, a turn each, of 4 lines" in card and "not heard back: 1" in card and "cannot be said: 1" in card
    assert soundfile.info(tmp_path / rows[0]["audio"]).samplerate == 16_000
    read, bad = batches.read_rows(tmp_path / "manifest.jsonl", 1000, need_units=False)
    assert [row.response for row in read] == ["Good day.", "A friend."] and bad == []


def test_a_row_is_the_same_whoever_makes_it_and_is_made_once(sources, tmp_path):
    """In another order, in another folder: the same bytes. In the same folder it is not made again."""
    for folder, order in ((tmp_path / "x", (0, 3)), (tmp_path / "y", (3, 0))):
        for i in order:
            maker().make(i, sources[i], folder)
    for name in ("questions/0000000-0.flac", "answers/0000003-0.flac", "rows/0000003.json"):
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()
    silent = maker()
    silent.ask = {}
    assert [row["id"] for row in silent.make(0, sources[0], tmp_path / "x")] == ["0000000-0"]


def test_other_settings_take_another_folder(tmp_path):
    instruct._same_settings(tmp_path, SETTINGS)
    instruct._same_settings(tmp_path, SETTINGS)
    with pytest.raises(ManifestError, match="take another folder"):
        instruct._same_settings(tmp_path, Settings(("a",), 1, 0.3))


class Loudness:
    """Units for tests: how loud each 20 ms is, in ten steps."""

    num_units, longest = 10, 16_000 * 20

    def __call__(self, samples, text=""):
        frames = np.abs(samples[: len(samples) // 320 * 320].reshape(-1, 320)).mean(1)
        return np.minimum(frames * 100, 9).astype(int).tolist()


@pytest.fixture
def dialogue(tmp_path):
    said = [
        "Who are you?",
        "A friend.",
        "Of whom?",
        "Of yours.",
        "mumble",
        "What?",
        "And now?",
        "We talk.",
        "Bye",
        "Bye",
    ]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"id": "7", "data": said}))
    (source,), _ = dialogues.read([tmp_path / "chat.jsonl"], "refuse", True, 4, {"chat.jsonl": "MIT"})
    return source


def test_a_dialogue_becomes_rows_with_their_history(dialogue, tmp_path):
    """Every turn is a row; the one that was not heard back ends the dialogue, and the card counts what is lost."""
    settings = Settings(("a", "b"), seed=0, word_errors=0.3, units="u", unit_digest="12ab")
    made = [maker(settings, units=Loudness()).make(5, dialogue, tmp_path)]
    first, second = instruct.finish(tmp_path, made, settings, 0, dialogue.num_cut)
    assert (first["id"], second["id"]) == ("0000005-0", "0000005-1")
    assert first["history"] == []
    earlier = {"audio": "questions/0000005-0.flac", "instruction": "Who are you?", "response": "A friend."}
    assert second["history"] == [earlier]
    assert first["voice"] == second["voice"]
    reader = Loudness()
    for row in (first, second):
        codes = reader(wav.read(tmp_path / row["answer_audio"]))
        assert row["units"] == instruct.merge(codes)[0]
    assert second["licence"] == "MIT" and second["source"] == "chat.jsonl:1"
    card = (tmp_path / "card.md").read_text()
    for line in ("dialogues of 2 turns: 1", "not heard back: 1", "turns after one of these: 1; past the first 4: 1",
                 "from chat.jsonl: 2 rows, MIT", f"{len(first['units']) + len(second['units'])} merged", "sha256 12ab",
                 "answers: hibari-tts, Apache-2.0"):  # fmt: skip
        assert line in card
    read, bad = batches.read_rows(tmp_path / "manifest.jsonl", 10, need_units=True)
    assert bad == [] and [len(row.history) for row in read] == [0, 1]
    assert read[1].history[0].audio == read[0].audio


def test_a_dialogue_has_one_speaker_and_one_room(dialogue, tmp_path):
    """The voice and the room get the same draws in every turn; another dialogue gets others."""
    drawn = []

    def voice(text, draw):
        drawn.append(draw.random())
        return np.zeros(16_000, np.float32)

    for number in (0, 1):
        everybody = maker()
        everybody.ask = {"a": voice, "b": voice}
        everybody.listen = lambda samples: "who are you"
        everybody.settings = Settings(("a", "b"), 0, word_errors=9.0)
        everybody.make(number, dialogue, tmp_path)
    assert len(drawn) == 8 and len(set(drawn)) == 2


def test_an_answerer_knows_what_was_said_before(dialogue, tmp_path):
    asked = []

    def answerer(system, user, history):
        asked.append((user, list(history)))
        return f"Answer {len(asked)}"

    maker(answerer=answerer).make(0, dialogue, tmp_path)
    assert asked[:2] == [("Who are you?", []), ("Of whom?", [("Who are you?", "Answer one.")])]


def test_an_answer_too_long_for_its_units_is_left_out(sources, tmp_path):
    reader = Loudness()
    reader.longest = 400 * len("Good day.") - 1
    assert maker(units=reader).make(0, sources[0], tmp_path) == [
        {"dropped": "answer too long for its units", "after": 0}
    ]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--mhubert", "x"], "belong together"),
        (["--units", "gone.safetensors"], "gone.safetensors cannot be read"),
        (["--licence", "MIT"], "is not FILE=TEXT"),
    ],
    ids=["no centroids", "no units", "no file"],
)
def test_what_cannot_work_is_said_before_anything_is_made(words, problem, tmp_path, monkeypatch, capsys):
    argv = ["train", "data", "--instructions", "in.jsonl", "--output", str(tmp_path / "out"), *words]
    monkeypatch.setattr("sys.argv", ["omni", *argv])
    assert cli.main(argv) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
