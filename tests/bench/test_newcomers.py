"""`omni bench newcomers`: the same work in fewer calls."""


def test_one_call_reads_what_several_do(bench):
    """Four newcomers: one call of the LLM against four, over the same positions; the ratio is told."""
    found, printed = bench("newcomers", "--shape", "tiny", "--newcomers", "4", "--rounds", "2")
    together, alone = (found["rounds"][way] for way in ("one call", "one by one"))
    steps = together[0]["calls"]
    assert [each["calls"] for each in together] == [steps] * 2 and steps < 4
    assert all(each["calls"] >= 4 for each in alone)
    assert len({each["positions"] for each in together + alone}) == 1
    assert "one by one / one call: " in printed and found["ratio"]["n"] == 2
