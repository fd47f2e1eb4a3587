"""`omni answer`: here and there, one question and many."""

import argparse
import asyncio

import pytest
from fake_cluster import FakeCluster, config, lost_worker, over_tcp, question, whole_answer

from omni.audio import wav
from omni.serve import answer
from omni.serve.controller import make_app
from omni.serve.protocol import AudioDelta, Done, Failed, TextDelta

OPTIONS = {"system": None, "temperature": 0.0, "top_p": 1.0, "top_k": 50, "max_new_tokens": 24, "seed": 0}


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    answer.add_arguments(parser)
    return answer.main(parser.parse_args([str(word) for word in words]))


@pytest.fixture(scope="module")
def here() -> answer.Here:
    """The tiny checkpoint, loaded once."""
    return answer.Here("tiny")


@pytest.fixture
def asked(tmp_path):
    path = tmp_path / "question.wav"
    path.write_bytes(question())
    return path


def test_here_equals_the_slow_path(here):
    """Engine and streamed vocoder say what the reference path and the offline vocoder say."""
    from omni import checkpoints
    from omni.model import checkpoint
    from omni.model.prompt import Utterance
    from omni.model.sampling import Sampling
    from omni.vocoder import checkpoint as voices
    from omni.vocoder.render import offline

    found = checkpoints.resolve("tiny")
    conversation = [Utterance("user", speech=wav.decode(question()))]
    steps = list(checkpoint.load(found.model).answer(conversation, Sampling(max_new_tokens=24)))
    units = [unit for step in steps for unit in step.units]
    samples = wav.from_pcm16(wav.to_pcm16(offline(voices.load(found.vocoder), units)))

    *events, done = here.ask(question(), OPTIONS)
    heard = wav.from_pcm16(b"".join(each.pcm16 for each in events if isinstance(each, AudioDelta)))
    assert "".join(each.text for each in events if isinstance(each, TextDelta)) == "".join(s.text for s in steps)
    assert len(heard) == len(samples) > 0 and abs(heard - samples).max() <= 1.01 / wav.PCM16_SCALE
    assert isinstance(done, Done) and (done.num_tokens, done.num_units) == (len(steps), len(units))
    assert done.num_samples == len(samples) and done.finish == steps[-1].finish


def test_here_streams(here):
    """The first sound comes before the last word, and a turn that is left leaves no trace in the next one."""
    events = here.ask(question(), OPTIONS)
    first = [next(events) for _ in range(3)]
    events.close()
    again = list(here.ask(question(), OPTIONS))
    assert again[:3] == first
    kinds = [type(each) for each in again]
    assert kinds.index(AudioDelta) < len(kinds) - 1 - kinds[::-1].index(TextDelta)


def test_seed_decides_a_sampled_answer(here):
    """The same seed gives the same answer, another seed another."""

    def say(seed: int) -> str:
        events = here.ask(question(), OPTIONS | {"temperature": 1.5, "seed": seed})
        return "".join(each.text for each in events if isinstance(each, TextDelta))

    said = [say(seed) for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", "audio_empty"), (b"words", "audio_not_decodable"), (wav.wav_bytes(bytes(32_000)), "audio_silent")],
    ids=["empty", "no audio", "silent"],
)
def test_here_names_what_is_wrong(here, data, code):
    (failed,) = here.ask(data, OPTIONS)
    assert isinstance(failed, Failed) and failed.code == code


async def test_there(tmp_path, asked, capsys):
    """Asks the controller, prints words, time to first audio and real-time factor, and writes the sound."""
    out = tmp_path / "answer.wav"
    async with over_tcp(make_app(config(tmp_path), FakeCluster())) as url:
        code = await asyncio.to_thread(run, asked, "-o", out, "--url", url, "--seed", "3")
    text, pcm = whole_answer()
    printed = capsys.readouterr().out
    assert code == 0 and text in printed
    assert "first audio after" in printed and "real-time factor" in printed
    assert wav.to_pcm16(wav.read(out)) == pcm


async def test_several_questions(tmp_path, asked):
    """Each has its answer in the folder; one that cannot be read fails alone."""
    (tmp_path / "second.wav").write_bytes(question(0.2))
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    names = [asked, tmp_path / "broken.wav", tmp_path / "second.wav", tmp_path / "missing.wav"]
    async with over_tcp(make_app(config(tmp_path), FakeCluster())) as url:
        code = await asyncio.to_thread(run, *names, "-o", tmp_path / "answers", "--url", url)
    assert code == 1
    assert {path.name for path in (tmp_path / "answers").iterdir()} == {"question.wav", "second.wav"}


async def test_errors_are_told(tmp_path, asked, capsys):
    """A lost worker, and nobody there: a sentence, a code, and a failing exit status."""
    cluster = FakeCluster()
    cluster.error, cluster.error_at = lost_worker(), 3
    async with over_tcp(make_app(config(tmp_path), cluster)) as url:
        assert await asyncio.to_thread(run, asked, "--url", url) == 1
    assert "(worker_lost)" in capsys.readouterr().err
    assert await asyncio.to_thread(run, asked, "--url", url) == 1
    assert "(unreachable)" in capsys.readouterr().err


def test_wrong_arguments(tmp_path, asked, capsys):
    """What cannot work stops before anything is loaded."""
    assert run(asked, "--model", tmp_path / "none") == 2
    assert run(asked, asked, "-o", asked) == 2
    assert "neither mini, tiny" in capsys.readouterr().err


def test_here_from_the_command_line(tmp_path, asked, capsys):
    """The README's line, with the tiny checkpoint."""
    out = tmp_path / "answer.wav"
    assert run(asked, "-o", out, "--model", "tiny", "--max-new-tokens", "16") == 0
    assert "first audio after" in capsys.readouterr().out and wav.read(out).size > 0
