"""From portions of sound to questions: what is loud is speech here, so that no network is needed."""

import numpy as np
import pytest
from fake_cluster import config

from omni.audio.vad import WINDOW
from omni.serve.conversation import Item
from omni.serve.errors import BadAudio, BadRequest, OmniError, RateLimited
from omni.serve.listening import Listening
from omni.serve.realtime_settings import Settings
from omni.serve.turn_taking import Paused, Resumed, Signal, Started, Stopped

DETECTED = {"audio": {"input": {"format": {"rate": 16000}, "turn_detection": {"prefix_padding_ms": 64}}}}
PUSH_TO_TALK = {"audio": {"input": {"format": {"rate": 16000}, "turn_detection": None}}}


class LoudEar:
    def push(self, samples: np.ndarray) -> np.ndarray:
        assert len(samples) % WINDOW == 0
        return np.abs(samples).reshape(-1, WINDOW).max(1)


class FakeHearing:
    windows = 4

    async def ear(self) -> LoudEar:
        return LoudEar()

    async def run(self, work, *args):
        return work(*args)


class Heard:
    """A Listening, and what it told."""

    def __init__(self, directory, given=DETECTED, **limits) -> None:
        self.signals: list[Signal] = []
        self.items: list[Item] = []  # of every pause and every end
        self.errors: list[OmniError] = []
        self.refusal: OmniError | None = None
        limited = config(directory, **limits)
        settings = Settings().updated(given)
        self.listening = Listening(FakeHearing(), limited, settings, lambda: 0.0, self.act, self.errors.append)

    def act(self, signal: Signal) -> None:
        self.signals.append(signal)
        if isinstance(signal, Paused):
            self.items.append(self.listening.question(signal.sample))
        elif isinstance(signal, Stopped):
            self.items.append(self.listening.take(signal.sample))
        if self.refusal is not None:
            raise self.refusal

    async def append(self, loud: str, portion: int = 999) -> "Heard":
        """A word of windows: # is loud, . is not."""
        pcm16 = b"".join(np.full(WINDOW, 32_000 if each == "#" else 0, "<i2").tobytes() for each in loud)
        for start in range(0, len(pcm16), 2 * portion):
            await self.listening.append(pcm16[start : start + 2 * portion])
        return self


@pytest.mark.parametrize("portion", [7, 512, 100_000])
async def test_a_question_is_what_was_said_between_start_and_stop(tmp_path, portion):
    """However it is portioned; and until a pause it is the same samples as at the end."""
    heard = await Heard(tmp_path).append("..........######", portion)
    await heard.append("." * 20, portion)
    assert heard.signals == [Started(8 * WINDOW), Paused(18 * WINDOW), Stopped(18 * WINDOW)]
    assert heard.items[0] == heard.items[1] and len(heard.items[0].pcm16) == 2 * 10 * WINDOW
    assert heard.errors == []


async def test_a_click_is_no_question(tmp_path):
    """Nor does it cost the next question its padding."""
    heard = await Heard(tmp_path).append("......#.....#####")
    assert heard.signals == [Started(10 * WINDOW)]
    assert len(heard.listening.question(10**9).pcm16) == 2 * 7 * WINDOW


async def test_a_pause_that_is_none(tmp_path):
    heard = await Heard(tmp_path).append("####....####")
    assert [type(each) for each in heard.signals] == [Started, Paused, Resumed]


async def test_what_nobody_says_is_not_kept(tmp_path):
    heard = await Heard(tmp_path).append("." * 1_000)
    assert heard.listening.question(10**9).pcm16 == bytes(2 * 2 * WINDOW), "the padding before what may follow"


async def test_a_refused_signal_does_not_end_the_hearing(tmp_path):
    """What is wrong with one moment is told; the windows after it are heard all the same."""
    heard = Heard(tmp_path)
    heard.refusal = BadRequest("No.")
    await heard.append("####" + "." * 20 + "####", 100_000)
    assert [type(each) for each in heard.signals] == [Started, Paused, Stopped, Started]
    assert [each.message for each in heard.errors] == ["No."] * 4


async def test_a_question_without_an_end(tmp_path):
    """It is ended at the limit, with an error; what follows is another one."""
    heard = await Heard(tmp_path, max_audio_seconds=0.32).append("#" * 12)
    assert heard.signals == [Started(0), Stopped(10 * WINDOW), Started(10 * WINDOW)]
    assert [each.code for each in heard.errors] == ["audio_too_long"]


async def test_push_to_talk(tmp_path):
    heard = Heard(tmp_path, PUSH_TO_TALK, max_audio_seconds=1.0)
    with pytest.raises(BadRequest, match="0 ms"):
        heard.listening.commit()
    await heard.append("....####")
    with pytest.raises(BadAudio, match="not taken"):
        await heard.append("#" * 30, 100_000)
    assert len(heard.listening.commit().pcm16) == 2 * 8 * WINDOW
    await heard.append("....")
    with pytest.raises(BadAudio, match="silent"):
        heard.listening.commit()
    heard.listening.clear()
    assert heard.signals == [] and heard.listening.question(10**9).pcm16 == b""


async def test_faster_than_anybody_speaks(tmp_path):
    heard = Heard(tmp_path, audio_burst=0.2)
    with pytest.raises(RateLimited, match="faster"):
        await heard.append("#" * 8)
    assert heard.signals == [Started(0)]
