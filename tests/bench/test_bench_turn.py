"""`omni bench turn`: both contestants answer the same words; ratios, stages and their counts are in the JSON."""

from bench.turn import STAGES
from omni import cli


def test_turn(bench):
    """A few short questions: ratios with intervals, each stage of each contestant, a table that names the machine."""
    found, said = bench(
        "turn", "--shape", "tiny", "--questions", "2", "--seconds", "1", "--max-new-tokens", "16",
        "--stage-questions", "1",
    )  # fmt: skip
    first = found["ratios"]["first_audio"]
    assert 0 < first["low"] <= first["median"] <= first["high"]
    assert first["n"] == found["num_heard"] == 2
    assert found["ours"]["tokens"] == found["naive"]["tokens"] == 16
    for contestant in ("ours", "naive"):
        assert list(found[contestant]["stages"]) == list(STAGES)
        assert min(found[contestant]["stages"].values()) > 0
    assert found["ours"]["calls"]["steps"] == 15  # the prompt gives the first token
    assert found["naive"]["calls"]["units"] == 17  # the whole answer at each token, and once more
    assert found["about"]["versions"]["torch"] and found["about"]["command"].startswith("omni bench turn --shape tiny")
    assert "| first audio, p50, ms |" in said and found["about"]["hardware"] in said


def test_a_bad_wish_is_told(bench, capsys):
    """No questions, or one longer than the encoder hears: said in a line, before anything is loaded."""
    assert cli.main(["bench", "turn", "--questions", "0"]) == 2
    assert cli.main(["bench", "turn", "--seconds", "31"]) == 2
    assert capsys.readouterr().out.count("omni bench turn: ") == 2
