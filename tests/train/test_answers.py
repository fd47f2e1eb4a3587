"""The answering voice: its recordings on disk, and the alignment that comes with them."""

import numpy as np
import pytest
import tone_voice

from omni.train.answers import AnsweringVoice, Recordings


def test_recordings_come_back_as_they_were_spoken(tmp_path):
    tone_voice.write(tmp_path, ["abc de", "h"])
    recordings = Recordings(tmp_path)
    assert [row["text"] for row in recordings.rows] == ["abc de"]  # "h" lasts 0.12 s: too short to learn from
    np.testing.assert_allclose(recordings.samples(0), tone_voice.ToneVoice()("abc de").samples, atol=1e-4)
    assert recordings.num_frames(0) == 36
    assert recordings.rows[0]["word_ends"] == [0.36, 0.72]


def test_frames_are_split_where_recordings_end(tmp_path):
    recordings = tone_voice.write(tmp_path, ["abcde", "fghab c"])
    first, second = recordings.split_frames(np.load(tmp_path / "codes.npy"))
    assert (first[0], first[-1], second[0], second[-1]) == (1, 5, 6, 3)


@pytest.mark.parametrize("level", [110.0, 203.0])
def test_a_level_whose_periods_do_not_fit_the_frames_is_refused(level):
    pytest.importorskip("hibari")
    with pytest.raises(ValueError, match="multiples of 50 Hz"):
        AnsweringVoice(level=level)


def test_every_phone_has_its_time_and_the_level_voice_repeats_itself_each_frame():
    pytest.importorskip("hibari")
    spoken = AnsweringVoice(level=200.0)("Hello there, my friend. Good night.")
    assert len(spoken.samples) % 320 == 0
    assert len(spoken.ends) == len(spoken.phones)
    assert (np.diff(spoken.ends) >= 0).all()
    assert spoken.ends[-1] == pytest.approx(len(spoken.samples) / 16_000, abs=0.03)
    assert len(spoken.word_ends) == 6
    frames = spoken.samples.reshape(-1, 320)
    loud = np.argsort((frames**2).sum(1))[-20:]  # vowels
    likeness = [np.corrcoef(frames[i], frames[i + 1])[0, 1] for i in loud if i + 1 < len(frames)]
    assert np.median(likeness) > 0.8  # periods are locked to the frames
