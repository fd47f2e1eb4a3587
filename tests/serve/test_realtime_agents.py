"""The npm client of OpenAI's Agents SDK, unmodified and with its own defaults, over /v1/realtime."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import soxr
from fake_cluster import FakeCluster, config, over_tcp, whole_answer
from up import Up

from omni.audio import wav
from omni.serve.controller import make_app

HERE = Path(__file__).parent / "agents"
HELDOUT = Path(__file__).parents[2] / "omni" / "train" / "data" / "heldout"
INSTALL_SECONDS, TALK_SECONDS = 300, 60
TOKENS = 24  # of an answer of the real cluster's
OLDEST_NODE = 18  # Debian bookworm's, with npm 9; the client itself asks for 22
TWO_TURNS = [["user", "completed"], ["assistant", "completed"]] * 2


@pytest.fixture(scope="module")
def agents(tmp_path_factory) -> Path:
    """A folder with the client, its program and a question.

    The client imports @modelcontextprotocol/client, which it calls optional and which asks for Node 20. Debian bookworm
    has Node 18, whose npm leaves such a package out, though it runs there: package.json names it, and npm only warns.
    """
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("needs node and npm: apt-get install npm")
    version = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True).stdout
    if int(version.lstrip("v").split(".")[0]) < OLDEST_NODE:
        pytest.skip(f"needs Node {OLDEST_NODE} or newer; this is {version.strip()}")
    directory = tmp_path_factory.mktemp("agents")
    for name in ("package.json", "package-lock.json", "talk.mjs"):
        shutil.copy(HERE / name, directory)
    command = ["npm", "ci", "--no-audit", "--no-fund"]
    subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=INSTALL_SECONDS)
    samples = soxr.resample(wav.read(HELDOUT / "chitchat-000.flac"), 16_000, 24_000)
    (directory / "question.pcm").write_bytes(wav.to_pcm16(samples) + bytes(2 * 24_000))
    return directory


async def two_turns(agents: Path, url: str, model: str, *options: object) -> dict[str, Any]:
    """What the client knows after the question was asked twice."""
    address = f"{url.replace('http', 'ws')}/v1/realtime?model={model}"
    process = await asyncio.create_subprocess_exec(
        *("node", "talk.mjs", address, "question.pcm", *map(str, options)),
        cwd=agents,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), TALK_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    return json.loads(out)


async def test_the_agents_client_converses(agents, tmp_path):
    """semantic_vad, a transcription and tracing are its defaults: it gets none of them, two answers and no error."""
    cluster = FakeCluster()
    async with over_tcp(make_app(config(tmp_path), cluster)) as url:
        heard = await two_turns(agents, url, "fake")
    assert heard["errors"] == [] and heard["turns"] == 2
    assert heard["bytes"] == 2 * len(whole_answer()[1]) * 3 // 2  # at 24 kHz
    assert heard["history"] == TWO_TURNS and heard["words"] == 2 * [whole_answer()[0]]
    assert cluster.requests[0].messages[0].text == "Be brief."


async def test_it_converses_with_a_real_cluster(agents, up: Up):
    """Two answers, each with words and sound. They are cut at their length: the tiny checkpoint knows no end."""
    heard = await two_turns(agents, up.url, "tiny", TOKENS)
    assert heard["errors"] == [] and heard["turns"] == 2
    assert heard["bytes"] > 0 and all(heard["words"])
    assert heard["history"] == TWO_TURNS
