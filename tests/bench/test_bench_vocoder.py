"""`omni bench vocoder`: chunked calls cost more than one, and ours less than a planner that cuts between units."""


def test_vocoder(bench):
    found, said = bench("vocoder", "--units", "36", "--rounds", "1")
    small = found["chunks"][0]
    assert small["calls"] > found["chunks"][2]["calls"] >= 1
    assert 1 < small["work"] < small["whole_units"]["work"]
    assert found["offline"]["cpu"] > 0 and "| 10 → 80 |" in said
