"""The npm client of OpenAI's Agents SDK, unmodified and with its own defaults, over /v1/realtime."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest
import soxr
from fake_cluster import FakeCluster, config, over_tcp, whole_answer

from omni.audio import wav
from omni.serve.controller import make_app

HERE = Path(__file__).parent / "agents"
HELDOUT = Path(__file__).parents[2] / "omni" / "train" / "data" / "heldout"
INSTALL_SECONDS, TALK_SECONDS = 180, 60


async def run(*command: str, cwd: Path, seconds: float) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), seconds)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    return out.decode()


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs node and npm")
async def test_the_agents_client_converses(tmp_path):
    """semantic_vad, a transcription and tracing are its defaults: it gets none of them, two answers and no error."""
    for name in ("package.json", "package-lock.json", "talk.mjs"):
        shutil.copy(HERE / name, tmp_path)
    await run("npm", "ci", "--no-audit", "--no-fund", cwd=tmp_path, seconds=INSTALL_SECONDS)
    question = wav.read(HELDOUT / "chitchat-000.flac")
    pcm = wav.to_pcm16(soxr.resample(question, 16_000, 24_000)) + bytes(2 * 24_000)
    (tmp_path / "question.pcm").write_bytes(pcm)
    (tmp_path / "voice").mkdir()
    cluster = FakeCluster()
    async with over_tcp(make_app(config(tmp_path / "voice"), cluster)) as url:
        address = url.replace("http", "ws") + "/v1/realtime?model=fake"
        told = await run("node", "talk.mjs", address, "question.pcm", cwd=tmp_path, seconds=TALK_SECONDS)
    heard = json.loads(told)
    assert heard["errors"] == [] and heard["turns"] == 2
    assert heard["bytes"] == 2 * len(whole_answer()[1]) * 3 // 2  # at 24 kHz
    assert heard["history"] == [["user", "completed"], ["assistant", "completed"]] * 2
    assert cluster.requests[0].messages[0].text == "Be brief."
