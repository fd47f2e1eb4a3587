"""`omni bench …` in this process, on the tiny checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from omni import cli


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch, capsys) -> Callable[..., tuple[dict[str, Any], str]]:
    """bench("turn", "--shape", "tiny") → its JSON, and what it printed."""

    def run(*words: str) -> tuple[dict[str, Any], str]:
        file = tmp_path / "result.json"
        argv = ["bench", *words, "--json", str(file)]
        monkeypatch.setattr("sys.argv", ["omni", *argv])
        assert cli.main(argv) == 0
        return json.loads(file.read_text()), capsys.readouterr().out

    return run
