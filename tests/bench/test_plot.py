"""Plots are PNG files of what the JSON holds."""

from pathlib import Path
from typing import Any

from bench import plot

PNG = b"\x89PNG"


def one(sessions: int, delay: float) -> dict[str, Any]:
    turns = [{"asked": 1.0 * i, "first_audio": delay if i else None} for i in range(5)]
    return {"sessions": sessions, "first_audio": {"p50": delay, "p95": 2 * delay, "p99": None}, "each": turns}


def test_load(tmp_path: Path):
    """One load shows its turns, several show how delays grow."""
    single, several = tmp_path / "one.png", tmp_path / "several.png"
    plot.load({"objective": 1.0, "loads": [one(8, 0.2)]}, single)
    plot.load({"objective": 1.0, "loads": [one(8, 0.5), one(1, 0.1), one(4, 0.2)]}, several)
    assert single.read_bytes()[:4] == several.read_bytes()[:4] == PNG
    assert single.read_bytes() != several.read_bytes()
