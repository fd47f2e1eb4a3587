"""Answers come to the numbers one would count by hand; the table takes the last one's place."""

from dataclasses import replace

import pytest

from omni.train import measures
from omni.train.measures import Answer, Before, Recording

GOOD = Answer(
    id="a", kind="factual", voice="emma", asked="What is the capital of France?", text="It is Paris.",
    heard="It is Paris.", written="Paris.", fitting=True, fitting_heard=True, fitting_written=True,
    num_tokens=5, num_units=30, answer_seconds=1.5, compute_seconds=0.6,
)  # fmt: skip
BAD = replace(GOOD, kind="chitchat", voice="bella", text="I am a cat", heard="I am hat", fitting=False,
              fitting_heard=False, answer_seconds=0.5, compute_seconds=0.4)  # fmt: skip
SILENT = replace(BAD, text="Hm", heard="", fitting_written=False, answer_seconds=0.0, compute_seconds=9.0)
RUN = {
    "model": "tiny",
    "command": "omni evaluate",
    "hardware": "a machine",
    "minutes": 1.0,
    "scorer": "fits",
    "seed": 0,
}


def test_the_numbers_are_those_counted_by_hand():
    result = measures.summary([GOOD, BAD, SILENT])
    assert result["questions"] == 3
    assert result["fitting"] == pytest.approx(1 / 3)
    assert result["fitting_text"] == pytest.approx(2 / 3)
    assert result["voice_over_text"] == pytest.approx(-1 / 3)
    assert result["fitting_by_kind"] == {"chitchat": 0.0, "factual": 1.0}
    assert result["asr_wer"] == pytest.approx((0 + 2 + 1) / (3 + 4 + 1))
    assert result["asr_cer"] == pytest.approx((0 + 2 + 2) / (9 + 7 + 2))
    assert result["words_per_second"] == pytest.approx(7 / 2.0)
    assert result["real_time_factor"] == pytest.approx(0.5)
    assert result["answers_without_sound"] == 1
    assert result["mos"] is None


def test_mos_and_points_are_means_of_what_was_rated():
    """A clip too short to rate lowers nothing; the judge's points come for text, speech and writing."""
    rated = replace(GOOD, mos=4.0, points=5.0, points_heard=3.0, points_written=4.0)
    result = measures.summary([rated, replace(rated, mos=3.0, points=2.0), replace(rated, mos=None)])
    assert (result["mos"], result["mos_clips"]) == (3.5, 2)
    assert (result["points"], result["points_heard"], result["points_text"]) == (4.0, 3.0, 4.0)
    text = measures.table(result | RUN, [rated], [])
    assert "| MOS | 3.50 (2 clips) |" in text and "(S2SIF) | 3.00 |" in text


def test_dialogues_are_counted_by_their_turns_and_shown_with_what_went_before():
    late = replace(BAD, before=(Before("Who?", "Me."), Before("You | I?", "")))
    result = measures.summary([GOOD, late, replace(late, fitting=True)])
    assert result["fitting_by_turns"] == {"1": 1.0, "3": 0.5}
    text = measures.table(result | RUN, [GOOD, late], [])
    assert "| · in turn 1 | 100.0 % |\n| · in turn 3 | 50.0 % |" in text
    assert "| before | asked aloud |" in text and "| Who? – Me. You \\| I? –  | What is the capital" in text


def test_a_table_without_dialogues_says_nothing_of_turns():
    text = measures.table(measures.summary([GOOD, BAD]) | RUN, [GOOD, BAD], [])
    assert "turn" not in text and "| asked aloud | answered | heard | fits |" in text


def test_two_checkpoints_stand_side_by_side():
    ours, theirs = measures.summary([GOOD, GOOD]), measures.summary([BAD, GOOD])
    ours["difference"] = {"fitting": {"value": 0.5, "low": 0.0, "high": 1.0}, "mos": None}
    text = measures.table(ours | RUN, [GOOD], [], theirs | {"model": "old"})
    assert "| measure | `tiny` | `old` | difference (95 %) |" in text
    assert "| fitting answers | 100.0 % | 50.0 % | 50.0 % (0.0 % … 100.0 %) |" in text


def test_what_was_not_measured_is_null():
    """Without the same questions as text there is no gap; without sound no factor."""
    result = measures.summary([replace(SILENT, written=None, fitting_written=None)])
    assert result["fitting_text"] is None and result["voice_over_text"] is None
    assert result["real_time_factor"] is None and result["words_per_second"] is None
    assert "| voice over text | – |" in measures.table(result | RUN, [SILENT], [])


def test_the_table_names_command_and_hardware_and_keeps_its_columns():
    hostile = replace(GOOD, text="a | b\nc")
    text = measures.table(measures.summary([hostile]) | RUN, [hostile], [Recording("x.wav", 2.0, error="too long")])
    assert "`omni evaluate` on a machine in 1.0 minutes" in text
    assert "a \\| b c" in text
    assert "| x.wav | 2.0 |  | *too long* |  |" in text


def test_the_table_replaces_the_last_one_and_nothing_else(tmp_path):
    path = tmp_path / "docs" / "mini.md"
    first, second = (f"{measures.BEGIN}\n\n{text}\n\n{measures.END}" for text in ("one", "two"))
    measures.write_table(path, first)
    path.write_text("# The mini checkpoint\n\nBefore.\n\n" + first + "\n\nAfter.\n")
    measures.write_table(path, second)
    measures.write_table(path, second)
    assert path.read_text() == "# The mini checkpoint\n\nBefore.\n\n" + second + "\n\nAfter.\n"


def test_the_hardware_is_told():
    assert "2 threads" in measures.hardware("cpu", 2)
