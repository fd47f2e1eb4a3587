"""Checkpoints that the model's tests share: the golden one (published layout) and tiny (ours)."""

from pathlib import Path

import pytest
import torch

from omni.model import checkpoint, tiny
from omni.model.omni import Omni

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden() -> Omni:
    return checkpoint.load(GOLDEN / "checkpoint" / "Llama-3.1-8B-Omni-tiny")


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    directory.mkdir()
    tiny.write(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_omni(tiny_directory) -> Omni:
    return checkpoint.load(tiny_directory)
