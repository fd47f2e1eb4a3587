"""A real cluster over HTTP: OpenAI's client, our own client and the command line hear the same answer."""

import argparse
import base64
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from fake_cluster import question
from up import Up

from omni.audio import wav
from omni.serve import answer
from omni.serve.client import Client
from omni.serve.protocol import AudioDelta, Done, Failed, TextDelta

TOKENS = 24


@pytest.fixture(scope="module")
def heard(up: Up) -> tuple[str, bytes, Done]:
    """The answer as /v1/turns gives it: text, PCM and the last event."""
    with Client(up.url) as client:
        events = list(client.turn(question(), max_new_tokens=TOKENS))
    done = events[-1]
    assert isinstance(done, Done), done
    text = "".join(each.text for each in events if isinstance(each, TextDelta))
    return text, b"".join(each.pcm16 for each in events if isinstance(each, AudioDelta)), done


@pytest.fixture(scope="module")
def client(up: Up):
    with openai.OpenAI(base_url=f"{up.url}/v1", api_key="any") as client:
        yield client


def chat(client: openai.OpenAI, **options):
    data = base64.b64encode(question()).decode()
    content = [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(model="tiny", messages=messages, max_tokens=TOKENS, **options)


def test_our_own_client(heard):
    """The last event counts what came before it."""
    text, pcm, done = heard
    assert text == done.text and len(text) > 0
    assert len(pcm) == 2 * done.num_samples > 0
    assert 0 < done.timings["first_audio"] <= done.timings["total"]


def test_openai_whole(client, heard):
    reply = chat(client, modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"})
    message = reply.choices[0].message
    assert message.audio.transcript == heard[0]
    assert wav.to_pcm16(wav.decode(base64.b64decode(message.audio.data), allow_silence=True)) == heard[1]
    assert reply.usage.completion_tokens == heard[2].num_tokens and reply.usage.prompt_tokens > 0


def test_openai_streamed(client, heard):
    audio = {"voice": "alloy", "format": "pcm16", "sample_rate": 16_000}
    stream = chat(client, modalities=["text", "audio"], audio=audio, stream=True)
    deltas = [chunk.choices[0].delta.audio for chunk in stream if chunk.choices and chunk.choices[0].delta.audio]
    assert "".join(each.transcript or "" for each in deltas) == heard[0]
    assert b"".join(base64.b64decode(each.data or "") for each in deltas) == heard[1]


def test_openai_text(client, heard):
    assert chat(client).choices[0].message.content == heard[0]


def test_the_command_line(up: Up, heard, tmp_path, capsys):
    """omni answer --url writes the same sound."""
    (tmp_path / "question.wav").write_bytes(question())
    parser = argparse.ArgumentParser()
    answer.add_arguments(parser)
    words = [str(tmp_path / "question.wav"), "-o", str(tmp_path / "answer.wav"), "--url", up.url]
    assert answer.main(parser.parse_args([*words, "--max-new-tokens", str(TOKENS)])) == 0
    assert heard[0] in capsys.readouterr().out
    assert wav.to_pcm16(wav.read(tmp_path / "answer.wav", allow_silence=True)) == heard[1]


def test_one_process_says_the_same(heard):
    """The cluster and `omni answer` without one: the same text, and the same sound to the last bit but one."""
    options = {"system": None, "temperature": 0.0, "top_p": 1.0, "top_k": 50, "max_new_tokens": TOKENS, "seed": 0}
    *events, done = answer.Here("tiny").ask(question(), options)
    pcm = b"".join(each.pcm16 for each in events if isinstance(each, AudioDelta))
    assert done.text == heard[0] and len(pcm) == len(heard[1])
    assert abs(wav.from_pcm16(pcm) - wav.from_pcm16(heard[1])).max() <= 1.01 / wav.PCM16_SCALE


def test_several_at_once(up: Up, heard):
    """Answers do not mix."""

    def ask(_: int) -> tuple[str, int]:
        with Client(up.url) as client:
            done = list(client.turn(question(), max_new_tokens=TOKENS))[-1]
        return (done.text, done.num_samples) if isinstance(done, Done) else (done.code, 0)

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(ask, range(12))) == {(heard[0], heard[2].num_samples)}


def test_typed_errors(up: Up, client):
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Hi."}])
    with Client(up.url) as own:
        (failed,) = own.turn(b"no audio")
    assert isinstance(failed, Failed) and failed.code == "audio_not_decodable"
