"""`omni bench hops`: what is counted, with the workers in this process; and once over a real Ray Serve."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bench import hollow, hops
from omni.serve.model_worker import ModelWorker
from omni.serve.protocol import Tokens, TurnRequest
from omni.serve.vocoder_worker import VocoderWorker
from omni.vocoder.streaming import Chunk, ChunkReply


class Here:
    """The hollow workers without anything between: a Cluster for a Turn."""

    def __init__(self) -> None:
        self.config = hollow.make_config(sessions=2)
        self.model = ModelWorker(self.config, "w1", load=hollow.HollowModel(0.001))
        self.vocoder = VocoderWorker(self.config, load=hollow.hollow_vocoder)

    async def generate(self, request: TurnRequest) -> AsyncIterator[Tokens]:
        async for tokens in self.model.generate(request):
            yield tokens

    async def vocode(self, turn_id: str, epoch: int, chunk: Chunk) -> ChunkReply:
        return await self.vocoder.vocode(turn_id, epoch, chunk)

    def suspect(self, kind: str, turn_id: str) -> bool:
        return False

    async def describe(self) -> dict[str, Any]:
        return {}

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        self.model.stop()
        self.vocoder._gathering.stop()


@pytest.fixture
def here():
    cluster = Here()
    yield cluster
    cluster.close()


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    hops.add_arguments(parser)
    return parser.parse_args(words)


async def test_every_hop_of_every_turn_is_counted(here):
    """A question and a first chunk a turn; at least a message and a chunk; and every time is one."""
    found = await hops.measure(here, here.config, arguments("--turns", "7", "--sessions", "2", "--tokens", "12"))
    assert set(found) == set(hops.HOPS)
    assert len(found["question"]) == len(found["first_two"]) == 7
    assert 7 * 12 >= len(found["units"]) >= 7 and len(found["sound"]) == len(found["chunk"]) >= 2 * 7
    assert all(0 <= each < 60 for times in found.values() for each in times)
    # the first chunk's way has both others in it
    assert min(found["first_two"]) >= min(found["chunk"]) + min(found["sound"])
    assert here.model.load()["running"] == 0 and here.vocoder.load()["running"] == 0


async def test_one_who_leaves_frees_the_hollow_engine(here):
    """A turn that is dropped after its first words is not computed further."""
    request = TurnRequest("t", 0, ())
    stream = here.model.generate(request)
    async for tokens in stream:
        if tokens.token_ids:
            break
    assert here.model.load()["running"] == 1
    await stream.aclose()
    assert here.model.load()["running"] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--turns", "0"], "--turns is 0"), (["--step", "-1"], "--step"), (["--question-seconds", "31"], "30 s")],
    ids=" ".join,
)
def test_bad_wishes_are_told(words: list[str], said: str, capsys):
    assert hops.main(arguments(*words)) == 2
    assert said in capsys.readouterr().err


def test_over_ray(tmp_path):
    """The command itself, on a cluster of its own: its numbers, its table, and nothing left."""
    file, scratch = tmp_path / "hops.json", Path(tempfile.mkdtemp(prefix="hops-", dir="/tmp"))  # Ray's sockets: short
    command = [sys.executable, "-m", "omni.cli", "bench", "hops", "--turns", "3", "--tokens", "12", "--json", str(file)]
    run = subprocess.run(
        command, env=os.environ | {"TMPDIR": str(scratch)}, capture_output=True, text=True, timeout=500, check=False
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(file.read_text())
    assert found["hops"]["question"]["n"] == found["hops"]["first_two"]["n"] == 3
    assert all(0 < each["p50"] <= each["p95"] for each in found["hops"].values())
    assert "| the first chunk's two hops together | 3 |" in run.stdout
    assert list(scratch.iterdir()) == []
    scratch.rmdir()
