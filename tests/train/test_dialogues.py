"""Dialogues in the formats that people publish them in, and what is wrong with one named with its line."""

import json

import pytest

from omni.train import dialogues
from omni.train.dialogues import Turn
from omni.train.manifest import ManifestError

TWO = (Turn("Hi", "Hello."), Turn("Who?", "Me."))


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"instruction": "Hi", "input": "there", "output": "Hello."}, (Turn("Hi there", "Hello."),)),
        ({"instruction": "Hi", "answer": "Hello."}, (Turn("Hi", "Hello."),)),
        ({"id": "0", "data": ["Hi", "Hello.", "Who?", "Me."]}, TWO),
        ({"turns": ["Hi", "Hello.", "Who?", "Me."]}, TWO),
        ({"turns": [{"instruction": "Hi", "response": "Hello."}, {"instruction": "Who?", "output": "Me."}]}, TWO),
        (
            {
                "prompt": "Hi",
                "messages": [
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "Hello."},
                    {"role": "user", "content": "Who?"},
                    {"role": "assistant", "content": "Me."},
                ],
            },
            TWO,
        ),
    ],
    ids=["alpaca", "fact", "ultrachat", "texts", "objects", "messages"],
)
def test_every_format_is_read(row, turns, tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps(row))
    (source,), num_bad = dialogues.read([tmp_path / "in.jsonl"], "refuse", True, 4)
    assert (source.turns, source.line, source.num_cut, num_bad) == (turns, 1, 0, 0)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"data": ["Hi", "Hello.", "Who?"]}, "a turn has no response"),
        ({"data": ["Hi", " "]}, "something that was said is empty"),
        ({"messages": [{"role": "system", "content": "Be"}]}, r"messages\[0\] is of 'system', .*leave a system"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, r"messages\[1\]"),
        ({"messages": [{"role": "user", "content": None}]}, "something that was said is empty"),
        ({"messages": "Hi"}, "messages is no list"),
        ({"turns": [{"response": "b"}]}, "instruction is missing"),
        ({"turns": [1]}, "turns is no list"),
        ({"text": "Hi"}, "instruction is missing"),
    ],
    ids=["no answer", "empty", "system", "same role", "no content", "no list", "no question", "numbers", "nothing"],
)
def test_what_is_no_dialogue_is_named(row, problem, tmp_path):
    (tmp_path / "in.jsonl").write_text("\n" + json.dumps(row))
    with pytest.raises(ManifestError, match=f"line 2: {problem}"):
        dialogues.read([tmp_path / "in.jsonl"], "refuse", True, 4)


def test_a_last_question_may_wait_for_an_answerer(tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps({"data": ["Hi", "Hello.", "Who?"]}))
    (source,), _ = dialogues.read([tmp_path / "in.jsonl"], "refuse", False, 4)
    assert source.turns == (Turn("Hi", "Hello."), Turn("Who?", ""))


def test_turns_past_the_first_are_counted_and_licences_kept(tmp_path):
    """A row's own licence counts more than its file's; lines stay those of the file where bad ones are skipped."""
    rows = ["{", json.dumps({"data": list("abcdef"), "license": "MIT"}), json.dumps({"data": ["a", "b"]})]
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    found, num_bad = dialogues.read([tmp_path / "in.jsonl"], "skip", True, 2, {"in.jsonl": "CC0"})
    assert num_bad == 1
    assert [(s.line, len(s.turns), s.num_cut, s.licence) for s in found] == [(2, 2, 1, "MIT"), (3, 1, 0, "CC0")]
