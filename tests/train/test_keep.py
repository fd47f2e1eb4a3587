"""Files appear whole or not at all; metrics of a resumed run are not written twice."""

import argparse

import pytest

from omni.train import keep, metrics
from omni.train.metrics import Metrics


def test_a_write_that_dies_leaves_the_last_good_file(tmp_path):
    keep.text(tmp_path / "new" / "a.txt", "good")

    def dies(partial):
        partial.write_text("ba")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep.whole(tmp_path / "new" / "a.txt", dies)
    assert [(path.name, path.read_text()) for path in (tmp_path / "new").iterdir()] == [("a.txt", "good")]


def test_a_resumed_run_drops_the_rows_it_writes_again(tmp_path):
    path = tmp_path / "metrics.csv"
    first = Metrics(path)
    for step in (10, 20, 30):
        first.row(step, {"loss": 1 / step})
    with path.open("a") as file:
        file.write("4")  # a line that a kill cut short
    again = Metrics(path, from_step=20)
    again.row(30, {"loss": 0.5, "rate": 0.1})
    assert [row["step"] for row in metrics.read(path)] == [10, 20, 30]
    assert metrics.read(path)[-1] == {"step": 30, "loss": 0.5, "rate": 0.1}


def test_a_run_is_drawn(tmp_path, capsys):
    Metrics(tmp_path / "stage2" / "metrics.csv").row(1, {"loss": 2.0})
    assert metrics.main(argparse.Namespace(run=tmp_path)) == 0
    assert (tmp_path / "stage2" / "metrics.png").exists()
    assert metrics.main(argparse.Namespace(run=tmp_path / "stage2" / "gone")) == 2
    assert "holds no metrics.csv" in capsys.readouterr().err
