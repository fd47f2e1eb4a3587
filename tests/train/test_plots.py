"""Pictures are drawn into files, and what is missing is told before the work."""

import sys

import pytest

from omni.train import plots

RESULT = {"fitting": 0.5, "fitting_heard": 0.25, "fitting_text": None, "fitting_by_kind": {"factual": 0.5}}
ROWS = [{"omega": 10, "llm_ms": 200.0, "vocoder_ms": 30.0}, {"omega": "offline", "llm_ms": 900.0, "vocoder_ms": 90.0}]


@pytest.mark.parametrize("models", [("mini",), ("mini", "old")], ids=["one", "two"])
def test_pictures_of_an_evaluation(tmp_path, models):
    plots.fitting(tmp_path / "new" / "fitting.png", dict.fromkeys(models, RESULT))
    plots.latency(tmp_path / "new" / "latency.png", dict.fromkeys(models, ROWS))
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "new").iterdir())


def test_curves_of_a_training(tmp_path):
    plots.curves(tmp_path / "curves.png", "stage 2", {"loss": ([1, 2, 3], [3.0, 2.0, 1.5]), "rate": ([1], [0.1])})
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_one_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(plots.PlotsMissing, match=r"omni\[train\]"):
        plots.require()
