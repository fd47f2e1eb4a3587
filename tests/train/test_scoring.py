"""What fits a question is decided by words; broken manifests say which line."""

import json
from pathlib import Path

import numpy as np
import pytest

from omni.audio import wav
from omni.train import scoring
from omni.train.scoring import Earlier, ManifestError, Question, find_scorer, fits, read_manifest

CAPITAL = Question("f", Path("f.wav"), "What is the capital of France?", "factual",
                   ("The capital of France is Paris.",), "Paris")  # fmt: skip
SUM = Question("s", Path("s.wav"), "What is six times seven?", "factual", ("Six times seven is 42.",), "forty-two")
JOKE = Question("c", Path("c.wav"), "You're dull", "chitchat", ("Swing and a miss.", "I will try to be less dull."))


@pytest.mark.parametrize(
    ("question", "answer", "fitting"),
    [
        (CAPITAL, "The capital of France is Paris.", True),
        (CAPITAL, "Oh, that would be PARIS!", True),
        (CAPITAL, "The capital of France is Lyon.", False),
        (CAPITAL, "Parisian bread.", False),
        (CAPITAL, "", False),
        (SUM, "That makes 42.", True),
        (SUM, "That makes forty three.", False),
        (JOKE, "swing and a miss", True),
        (JOKE, "I will try to be less dull.", True),
        (JOKE, "I will try to be less, dull.", True),
        (JOKE, "I'll try being less boring.", False),
        (JOKE, "Swing and a miss. The capital of France is Paris.", False),
        (JOKE, "", False),
    ],
    ids=lambda value: value.id if isinstance(value, Question) else str(value)[:28],
)
def test_an_answer_fits_by_its_fact_or_its_words(question, answer, fitting):
    assert fits(question, answer) is fitting


def test_another_scorer_is_found_by_its_name():
    assert find_scorer("fits") is scoring.fits
    assert find_scorer("omni.train.scoring:fits") is scoring.fits


@pytest.mark.parametrize("name", ["best", "omni.train.scoring:best", "no.such.module:f"])
def test_an_unknown_scorer_is_named(name):
    with pytest.raises(ManifestError, match=name):
        find_scorer(name)


EARLIER = {"audio": "a.wav", "instruction": "Ho"}


def line(**changes) -> str:
    return json.dumps(
        {"id": "a", "audio": "a.wav", "instruction": "Hi", "kind": "chitchat", "accept": ["Hello."]} | changes
    )


def test_a_manifest_is_read_with_audio_beside_it(tmp_path):
    wav.write(tmp_path / "a.wav", np.zeros(160, np.float32))
    (tmp_path / "m.jsonl").write_text(line() + "\n\n" + line(id="b", accept=None, fact="Paris") + "\n")
    first, second = read_manifest(tmp_path / "m.jsonl")
    assert first == Question("a", tmp_path / "a.wav", "Hi", "chitchat", ("Hello.",))
    assert (second.id, second.accept, second.fact) == ("b", (), "Paris")


def test_what_was_asked_before_is_read_with_its_audio(tmp_path):
    wav.write(tmp_path / "a.wav", np.zeros(160, np.float32))
    history = [EARLIER, EARLIER | {"response": "Hello."}]
    (tmp_path / "m.jsonl").write_text(line(history=history))
    (question,) = read_manifest(tmp_path / "m.jsonl")
    file = tmp_path / "a.wav"
    assert question.history == (Earlier(file, "Ho"), Earlier(file, "Ho", "Hello."))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("", "holds no usable rows"),
        ("{", "line 1"),
        ('{"id": "a"}', "line 1: audio is missing"),
        (line() + "\n" + line(id="b", audio="gone.wav"), "line 2: .*gone.wav is not there"),
        (line(accept=[]), "neither accept nor fact"),
        (line(history="Hi"), "line 1: history is no list"),
        (line(history={}), "line 1: history is no list"),
        (line(history=[EARLIER, "Hi"]), "line 1: history is no list"),
        (line(history=[EARLIER, EARLIER | {"audio": "gone.wav"}]), r"line 1: history\[1\]: .*gone.wav is not there"),
        (line(history=[EARLIER | {"instruction": " "}]), r"line 1: history\[0\]: instruction is ' '"),
        (line(history=[EARLIER | {"response": 5}]), r"line 1: history\[0\]: response is 5"),
    ],
    ids=[
        "no file",
        "empty",
        "no json",
        "missing key",
        "missing audio",
        "nothing fits",
        "history a text",
        "history an object",
        "earlier a text",
        "earlier audio missing",
        "earlier empty",
        "response a number",
    ],
)
def test_a_broken_manifest_says_where(tmp_path, content, words):
    wav.write(tmp_path / "a.wav", np.zeros(160, np.float32))
    if content is not None:
        (tmp_path / "m.jsonl").write_text(content)
    with pytest.raises(ManifestError, match=words):
        read_manifest(tmp_path / "m.jsonl")
