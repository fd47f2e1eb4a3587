"""The programs of examples/ as their users start them, and a controller over a fake cluster."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "serve"))
from fake_cluster import FakeCluster, config, over_tcp, question, tone, whole_answer  # noqa: E402

from omni.audio import wav  # noqa: E402
from omni.serve.controller import make_app  # noqa: E402

TEXT, PCM16 = whole_answer()


async def start(name: str, *words: object, key: str = "") -> tuple[int, str, str]:
    """Exit status, output and errors of an example."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        ROOT / "examples" / name,
        *map(str, words),
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMNI_API_KEY": key},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, out.decode(), err.decode()


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def recordings(tmp_path) -> Path:
    folder = tmp_path / "questions"
    folder.mkdir()
    for i in range(5):
        (folder / f"q{i}.wav").write_bytes(question(0.5 + i / 10))
    (folder / "notes.txt").write_text("no recording")
    return folder


@pytest.mark.parametrize("name", ["talk.py", "batch.py"])
async def test_help(name):
    status, out, _ = await start(name, "--help")
    assert status == 0 and out.startswith(f"usage: {name}") and "OMNI_API_KEY" in out


# --- talk -------------------------------------------------------------------------------------------------------------


async def test_talk_with_files(tmp_path, cluster, recordings):
    output = tmp_path / "answer.wav"
    async with over_tcp(make_app(config(tmp_path), cluster, api_key="secret")) as url:
        words = ("--url", url, "--file", recordings / "q0.wav", "--output", output)
        status, out, err = await start("talk.py", *words, "--instructions", "Be brief.", key="secret")
        assert (status, err) == (0, "")
        refused, _, why = await start("talk.py", *words, key="wrong")
    assert out.startswith(f"{TEXT}\nfirst audio ")
    assert output.read_bytes() == wav.wav_bytes(PCM16)
    assert cluster.requests[0].messages[0].text == "Be brief."
    assert refused == 1 and "OMNI_API_KEY" in why and "Traceback" not in why


async def test_talk_says_what_it_needs(tmp_path):
    status, _, err = await start("talk.py", "--file", tmp_path / "missing.wav")
    assert status == 1 and "missing.wav" in err and "Traceback" not in err


FAKE_DEVICES = """
class RawOutputStream:
    def __init__(self, callback, **_):
        self.callback = callback
    def __enter__(self):
        return self
    def __exit__(self, *_):
        with open(PLAYED, "wb") as file:
            for _ in range(200):
                block = bytearray(640)
                self.callback(block, 320, None, None)
                file.write(block)

class RawInputStream:
    def __init__(self, callback, **_):
        self.callback = callback
    def start(self):
        for at in range(0, len(SPOKEN), 640):
            self.callback(SPOKEN[at : at + 640], 320, None, None)
    def stop(self): pass
    def close(self): pass
"""


async def test_talk_with_devices(tmp_path, cluster):
    """Enter, speech, Enter: the speech is asked as it was, the answer is played to the last sample, and the input's
    end ends it. The devices are made up."""
    spoken, played = wav.to_pcm16(tone()), tmp_path / "played"
    (tmp_path / "sounddevice.py").write_text(f"SPOKEN, PLAYED = {spoken!r}, {str(played)!r}\n{FAKE_DEVICES}")
    async with over_tcp(make_app(config(tmp_path), cluster)) as url:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            ROOT / "examples" / "talk.py",
            "--url",
            url,
            env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(60):
                for awaited in (b"[Enter] speak", b"[Enter] done"):
                    await process.stdout.readuntil(awaited)
                    process.stdin.write(b"\n")
                out = await process.stdout.readuntil(b"first audio")
                process.stdin.close()
                await process.stdout.read()
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert TEXT.encode() in out
    assert cluster.requests[0].messages[-1].pcm16 == spoken
    assert played.read_bytes().rstrip(b"\0") == PCM16.rstrip(b"\0")


async def test_talk_without_devices(tmp_path):
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    command = (sys.executable, ROOT / "examples" / "talk.py")
    process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.PIPE)
    _, err = await process.communicate()
    assert process.returncode == 2 and b"PortAudio" in err and b"--file" in err


# --- batch ------------------------------------------------------------------------------------------------------------


async def test_batch_goes_on_where_it_stopped(tmp_path, cluster, recordings):
    """Every recording once; a second run asks only what is new, changed, or half there."""
    answers = tmp_path / "answers"
    async with over_tcp(make_app(config(tmp_path), cluster)) as url:
        words = (recordings, "--output", answers, "--url", url, "--at-once", 2, "--seed", 1)
        status, _, err = await start("batch.py", *words)
        assert status == 0, err
        assert len(cluster.requests) == 5
        assert sorted(path.name for path in answers.iterdir()) == sorted(
            f"q{i}{suffix}" for i in range(5) for suffix in (".json", ".wav")
        )
        for i in range(5):
            kept = json.loads((answers / f"q{i}.json").read_text())
            assert (kept["question"], kept["text"], kept["finish"]) == (f"q{i}.wav", TEXT, "stop")
            assert kept["num_samples"] == len(PCM16) // 2
            assert (answers / f"q{i}.wav").read_bytes() == wav.wav_bytes(PCM16)
        (answers / "q1.json").unlink()
        (answers / "q2.wav").unlink()
        (recordings / "q3.wav").write_bytes(question(1.5))
        status, _, err = await start("batch.py", *words)
    assert status == 0 and "5 recordings, 2 answered before" in err
    assert len(cluster.requests) == 8


async def test_batch_names_what_failed(tmp_path, cluster, recordings):
    """The others are answered; the broken one has no file, and is tried again by the next run."""
    (recordings / "broken.wav").write_bytes(b"no audio")
    answers = tmp_path / "answers"
    async with over_tcp(make_app(config(tmp_path), cluster)) as url:
        status, _, err = await start("batch.py", recordings, "--output", answers, "--url", url)
    assert status == 1 and "broken.wav: audio_not_decodable" in err
    assert len(list(answers.glob("*.json"))) == 5 and not list(answers.glob("broken*"))


async def test_batch_replaces_no_recording(recordings):
    status, _, err = await start("batch.py", recordings, "--output", recordings)
    assert status == 2 and "another folder" in err
    (recordings / "q0.flac").write_bytes(b"")
    status, _, err = await start("batch.py", recordings, "--output", recordings / "answers")
    assert status == 2 and "q0" in err
