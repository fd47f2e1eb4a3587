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
from omni.serve.protocol import ReadRequest, Tokens, TurnRequest
from omni.serve.vocoder_worker import VocoderWorker
from omni.vocoder.streaming import Chunk, ChunkReply


class Here:
    """The hollow workers without anything between: a Cluster for a Turn."""

    def __init__(self) -> None:
        self.config = hollow.make_config(model_workers=1, slots=2)
        self.model = ModelWorker(self.config, "w1", load=hollow.HollowModel(0.001))
        self.vocoder = VocoderWorker(self.config, load=hollow.hollow_vocoder)

    async def generate(self, request: TurnRequest) -> AsyncIterator[Tokens]:
        async for tokens in self.model.generate(request):
            yield tokens

    async def read(self, request: ReadRequest) -> str:
        return await self.model.read(request)

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
    watched = await hops.measure(here, here.config, arguments("--turns", "7", "--sessions", "2", "--tokens", "12"))
    found = watched.hops
    assert watched.workers["w1"].turns == 7
    assert set(found) == set(hops.HOPS)
    assert len(found["question"]) == len(found["first_two"]) == 7
    assert 7 * 12 >= len(found["units"]) >= 7 and len(found["sound"]) == len(found["chunk"]) >= 2 * 7
    assert all(0 <= each < 60 for times in found.values() for each in times)
    # the first chunk's way has both others in it
    assert min(found["first_two"]) >= min(found["chunk"]) + min(found["sound"])
    assert here.model.load()["running"] == 0 and here.vocoder.load()["running"] == 0


async def test_a_full_worker_lets_the_others_wait(here):
    """Five people, two slots: two are answered at a time, and all of them in the end."""
    watched = await hops.measure(here, here.config, arguments("--turns", "10", "--sessions", "5", "--tokens", "12"))
    assert (watched.workers["w1"].turns, watched.workers["w1"].most_at_once) == (10, 2)


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


def test_two_workers_hold_what_two_hold(tmp_path):
    """The command itself, over Ray Serve: two workers with three slots answer six people at once, three each.

    One would answer three of them and let three wait. And nothing of the cluster is left.
    """
    file, scratch = tmp_path / "hops.json", Path(tempfile.mkdtemp(prefix="hops-", dir="/tmp"))  # Ray's sockets: short
    words = ["--model-workers", "2", "--slots", "3", "--sessions", "6", "--turns", "18", "--tokens", "40"]
    run = subprocess.run(
        [sys.executable, "-m", "omni.cli", "bench", "hops", *words, "--json", str(file)],
        env=os.environ | {"TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(file.read_text())
    assert [each["most_at_once"] for each in found["workers"].values()] == [3, 3]
    assert sum(each["turns"] for each in found["workers"].values()) == 18
    assert found["hops"]["question"]["n"] == found["hops"]["first_two"]["n"] == 18
    assert all(0 < each["p50"] <= each["p95"] for each in found["hops"].values())
    assert "| the first chunk's two hops together | 18 |" in run.stdout
    assert list(scratch.iterdir()) == []
    scratch.rmdir()
