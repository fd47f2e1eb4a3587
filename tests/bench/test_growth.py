"""`omni bench growth`: ours counts the same work for every token, the published path more and more."""

from pathlib import Path


def test_growth(bench, tmp_path: Path):
    """Counted: 1 + 25 positions for each of our tokens; 25 more for each of naive's; kept turns are not read again."""
    picture = tmp_path / "growth.png"
    found, said = bench(
        "growth", "--shape", "tiny", "--tokens", "40", "--every", "13", "--rounds", "1", "--max-history", "2",
        "--max-sessions", "2", "--plot", str(picture),
    )  # fmt: skip
    answer = found["answer"]
    assert {tuple(each["rows"]) for each in answer["ours"][1:]} == {(1, 25)}
    assert [each["rows"] for each in answer["naive"]] == [[1, 25 * token] for token in range(2, 41)]
    assert [each["token"] for each in answer["naive"] if each["units"] is not None] == [14, 27, 40]
    assert answer["ours_last_over_first"] > 0 and answer["naive_last_over_first"] > 0
    for each in found["history"]:
        assert each["forgotten"]["rows"] == each["naive"]["rows"] == each["positions"]
        assert each["turns"] == 0 or each["kept"]["rows"] < each["positions"] / 2 + 100
    assert found["history"][2]["kept"]["rows"] < found["history"][2]["forgotten"]["rows"]
    assert [each["rows"] for each in found["sessions"]] == [[1, 25], [2, 50]]
    assert [each["calls"] for each in found["sessions"]] == [1, 1]
    assert "| earlier turns |" in said and "| sessions |" in said
    assert picture.read_bytes()[:4] == b"\x89PNG"
