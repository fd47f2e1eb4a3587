"""Latency by Ω: the streamed answer is the whole one, chunks come when their units do, and means are means."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from omni import checkpoints
from omni.audio import wav
from omni.model.prompt import Utterance
from omni.train import latency
from omni.train.latency import First, Heard, Timed
from omni.train.talker import Talker

GOLDEN = Path(__file__).parents[1] / "golden" / "audio"
QUESTION = [Utterance("user", speech=wav.read(GOLDEN / "utt0.wav"))]
TOKENS = 8


@pytest.fixture(scope="module")
def talker(tmp_path_factory) -> Talker:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNI_CACHE", str(tmp_path_factory.mktemp("cache")))
        checkpoints.resolve("tiny")
        return Talker.load("tiny", None, "cpu", TOKENS)


def test_the_streamed_answer_is_the_whole_one(talker):
    """Token by token, with caches, the same tokens and units as at once: of a question, and of a dialogue."""
    dialogue = [*QUESTION, talker.turn("Hello."), Utterance("user", speech=wav.read(GOLDEN / "utt1.wav"))]
    for asked in (QUESTION[0], dialogue):
        reply, streamed = talker(asked), list(talker.stream(asked))
        assert tuple(token_id for token_id, _ in streamed) == reply.token_ids
        assert tuple(unit for _, units in streamed for unit in units) == reply.units


def test_every_omega_gives_the_same_sound_and_is_listened_to_once(talker):
    listened: list[int] = []

    def listen(samples):
        listened.append(len(samples))
        return "i beg your pardon"

    found = latency.measure(talker, QUESTION, listen, lambda samples: 3.0, (10, 40, math.inf))
    assert [first.omega for first in found] == [10, 40, math.inf]
    assert all(first.difference <= latency.SAME_STEPS for first in found)
    assert len({first.sound_seconds for first in found}) == 1
    assert len(listened) == 1  # three times the same sound
    assert found[0].llm_seconds <= found[1].llm_seconds <= found[2].llm_seconds
    assert all(first.vocoder_seconds > 0 for first in found)


def test_a_chunk_waits_for_its_units_and_no_longer(talker):
    """Ten units a token, a token a second: Ω = 10 waits for its ten units and the look-ahead, offline for the end."""
    answer = Timed("", tuple(float(i) for i in range(1, 31)), tuple(tuple(range(10)) for _ in range(30)))
    seconds = {omega: latency.speak(talker.vocoder, answer, omega)[0] for omega in (10, 20, 100, math.inf)}
    assert 2 <= seconds[10] < seconds[20] < seconds[100] < seconds[math.inf] == 30


def test_an_answer_without_sound_is_no_row(talker, monkeypatch):
    monkeypatch.setattr(latency, "think", lambda *_: Timed("Hm", (0.1,), ((),)))
    assert latency.measure(talker, QUESTION, lambda _: "", None) == []
    assert latency.by_omega([[]]) == []


def test_the_difference_is_in_steps_of_sixteen_bits():
    assert latency.difference(b"\x01\x00\x00\x00", b"\x04\x00\x00\x00") == 3
    assert latency.difference(b"", b"") == 0
    assert latency.difference(b"\x00\x00", b"") == 65_536


def test_rows_are_means_over_the_answers():
    one = First(10, 0.1, 0.02, 2.0, 6, 0, Heard(b"", 3, 4.0))
    rows = latency.by_omega([[one, replace(one, omega=math.inf)], [replace(one, llm_seconds=0.3, num_words=4,
                             difference=9, heard=Heard(b"", 0, None))]])  # fmt: skip
    assert [row["omega"] for row in rows] == [10, "offline"]
    assert rows[0]["llm_ms"] == pytest.approx(200) and rows[0]["vocoder_ms"] == pytest.approx(20)
    assert rows[0]["total_ms"] == pytest.approx(220) == rows[0]["total_ms_median"]
    assert rows[0]["asr_wer"] == pytest.approx(0.3) and rows[0]["mos"] == 4.0
    assert rows[0]["words_per_second"] == pytest.approx(2.5) and rows[0]["same_as_offline"] == 0.5
