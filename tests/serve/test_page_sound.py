"""The page's own arithmetic, run where it lives: jitter buffer, resampler, heard words, archive, in a real Chromium."""

import base64
import io
import json
import wave
import zipfile

import numpy as np
import pytest
from browser import RECORDING, chromium, page_files, visit

from omni.serve.alignment import Alignment


@pytest.fixture(scope="module")
def page():
    with page_files() as url, chromium(RECORDING) as browser:
        yield visit(browser, f"{url}/page.css")


def run(page, script: str, argument=None):
    """A script with the page's modules at hand, each by its name."""
    modules = ("jitter", "resampler", "recording", "turn", "archive", "pcm")
    imports = "".join(f"const {name} = await import('/page/{name}.js');" for name in modules)
    return page.evaluate(f"async (argument) => {{ {imports} {script} }}", argument)


# --- jitter buffer ----------------------------------------------------------------------------------------------------

PULL = """
    const pull = (buffer, size = 128) => {
        const block = new Float32Array(size);
        buffer.pull(block);
        return [...block];
    };
    const filled = (value, size) => new Float32Array(size).fill(value);
"""


def test_every_sample_is_heard_once_and_in_order(page):
    """Pieces of any size come out of blocks of any size as they went in."""
    heard = run(
        page,
        PULL
        + """
        const buffer = new jitter.JitterBuffer(48000);
        buffer.begin(1);
        let next = 1, heard = [];
        for (const size of argument) {
            buffer.push(1, Float32Array.from({ length: size }, () => next++ / 32768));
            heard.push(...pull(buffer, 1 + (size % 200)));
        }
        buffer.end(1);
        while (!buffer.finished) heard.push(...pull(buffer));
        return [buffer.underruns, heard.map((value) => Math.round(value * 32768)).filter((value) => value)];""",
        [int(size) for size in np.random.default_rng(1).integers(200, 2000, 15)],
    )
    played = heard[1]
    samples = sum(int(size) for size in np.random.default_rng(1).integers(200, 2000, 15))
    assert heard[0] == 0
    assert played[:samples] == list(range(1, samples + 1))
    assert len(played) < samples + 64  # the end is faded, not cut


def test_an_answer_waits_for_two_frames_and_no_longer(page):
    """Sound begins at the buffer's start mark, or at once when the answer is shorter."""
    begun = run(
        page,
        PULL
        + """
        const buffer = new jitter.JitterBuffer(1000, { start: 0.04 });
        buffer.begin(1);
        buffer.push(1, filled(1, 39));
        const early = pull(buffer, 10)[9];
        buffer.push(1, filled(1, 1));
        const begun = pull(buffer, 10)[9];
        buffer.begin(2);
        buffer.push(2, filled(1, 5));
        buffer.end(2);
        return [early, begun, pull(buffer, 4)[3]];""",
    )
    assert begun == [0, 1, 1]


def test_running_dry_is_counted_and_asks_for_more_the_next_time(page):
    """After a gap twice as much is gathered before the sound goes on; the listener is told of it."""
    result = run(
        page,
        PULL
        + """
        const buffer = new jitter.JitterBuffer(1000, { start: 0.04 });
        buffer.begin(1);
        buffer.push(1, filled(1, 40));
        pull(buffer, 50);
        buffer.push(1, filled(1, 79));
        const waits = buffer.pull(new Float32Array(10));
        buffer.push(1, filled(1, 1));
        return [buffer.underruns, waits, buffer.pull(new Float32Array(10)), buffer.played];""",
    )
    assert result == [1, 0, 10, 50]


def test_a_flush_is_silence_within_a_frame(page):
    """The next block fades out over 64 samples, and everything after it is zero."""
    after = run(
        page,
        PULL
        + """
        const buffer = new jitter.JitterBuffer(48000);
        buffer.begin(1);
        buffer.push(1, filled(0.5, 48000));
        pull(buffer, 1000);
        const heard = buffer.flush();
        return [heard, pull(buffer, 960), buffer.buffered];""",
    )
    assert after[0] == {"answer": 1, "played": 1000}
    assert all(abs(a) > abs(b) for a, b in zip(after[1][:63], after[1][1:64], strict=True))
    assert not any(after[1][64:])
    assert after[2] == 0


def test_no_sample_of_an_old_answer_follows_a_new_one(page):
    """Ten interruptions at random moments, late pieces of earlier answers in between: the numbers only rise."""
    heard = run(
        page,
        PULL
        + """
        const buffer = new jitter.JitterBuffer(16000);
        const heard = [];
        for (let answer = 1; answer <= 10; answer++) {
            buffer.begin(answer);
            for (const size of argument[answer - 1]) {
                buffer.push(answer, filled(answer, size));
                if (answer > 1) buffer.push(answer - 1, filled(answer - 1, 300));
                heard.push(...pull(buffer, size % 700));
            }
            if (answer % 2) buffer.flush();
            buffer.push(answer, filled(answer, answer % 2 ? 400 : 0));
        }
        return heard;""",
        [[int(size) for size in row] for row in np.random.default_rng(2).integers(640, 3000, (10, 6))],
    )
    whole = [value for value in heard if value == int(value) and value]
    assert whole == sorted(whole)
    assert set(whole) == set(range(1, 11))


# --- resampler --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "to"), [(48_000, 16_000), (44_100, 16_000), (16_000, 44_100), (16_000, 48_000)])
def test_resampled_in_pieces_equals_resampled_whole(page, rate, to):
    """No seam; sample n stays at time n / rate; a tone keeps its amplitude and phase."""
    pieces, whole = run(
        page,
        """
        const { from, to } = argument;
        const input = Float32Array.from({ length: from }, (_, n) => Math.sin((2 * Math.PI * 440 * n) / from));
        const whole = new resampler.Resampler(from, to);
        const pieces = new resampler.Resampler(from, to);
        const parts = [];
        for (let at = 0, size = 1; at < from; at += size, size = (size * 7) % 1013)
            parts.push(...pieces.push(input.slice(at, at + size)));
        return [[...parts, ...pieces.end()], [...whole.push(input), ...whole.end()]];""",
        {"from": rate, "to": to},
    )
    expected = np.sin(2 * np.pi * 440 * np.arange(to) / to)
    assert pieces == whole
    assert len(whole) == to
    assert np.abs(np.array(whole) - expected)[200:-200].max() < 2e-3  # the ends ring


def test_what_would_alias_is_gone(page):
    """12 kHz cannot be said at 16 kHz: it is silence there, and not a tone at 4 kHz."""
    loudest = run(
        page,
        """
        const down = new resampler.Resampler(48000, 16000);
        const tone = Float32Array.from({ length: 9600 }, (_, n) => Math.sin((2 * Math.PI * 12000 * n) / 48000));
        const out = down.push(tone);
        return Math.max(...out.slice(100).map(Math.abs));""",
    )
    assert loudest < 1e-3


# --- what was said, and what is kept of it ----------------------------------------------------------------------------


def test_heard_words_follow_the_sound_and_never_go_back(page):
    """Nothing at first, whole words on the way, everything at the end; more text to come does not take back a mark."""
    marks = run(
        page,
        """
        const answer = new turn.Answer(1, { id: "r" });
        answer.text = "One two three four five";
        answer.add(new Int16Array(8000));
        const marks = [];
        const mark = (ms) => { answer.heardUntil(ms); marks.push(answer.heardText); };
        mark(0);
        mark(300);
        answer.text += " six seven eight nine ten";
        mark(310);
        answer.add(new Int16Array(24000));
        answer.whole = true;
        mark(1000);
        mark(2000);
        return marks;""",
    )
    assert marks[0] == ""
    assert marks[1] and "One two three four five".startswith(marks[1])
    assert marks[2] == marks[1]
    assert marks[3] == "One two three four five six"[: len(marks[3])]
    assert marks[4] == "One two three four five six seven eight nine ten"


def test_heard_words_are_those_the_session_remembers(page):
    """Where the server tells which token sounds until when, the mark is alignment.py's, for every millisecond."""
    alignment = Alignment(
        (1, 2, 3, 4, 5), "Né 👋 so, well", (2, 4, 7, 8, 13), (1_600, 4_800, 4_800, 8_000), 16_000, whole=True
    )
    ends = [[c, s // 16] for c, s in zip(alignment.char_ends, alignment.sample_ends, strict=False)]
    steps = list(range(0, 1001, 20))
    marks = run(
        page,
        f"""
        const answer = new turn.Answer(1, {{ id: "r" }});
        answer.text = {json.dumps(alignment.text)};
        answer.add(new Int16Array(16000));
        answer.whole = true;
        answer.align({json.dumps(ends)});
        return {steps}.map((ms) => {{ answer.heardUntil(ms); return answer.heardText; }});""",
    )
    assert marks == [alignment.heard(16 * ms).text for ms in steps]
    assert len(set(marks)) == 5


def test_an_interrupted_answer_keeps_what_was_heard(page):
    """Its sound ends where the listener stopped hearing it."""
    kept = run(
        page,
        """
        const answer = new turn.Answer(1, { id: "r" });
        answer.text = "One two three four five six seven eight nine ten";
        answer.add(new Int16Array(16000).fill(7));
        answer.add(new Int16Array(16000).fill(8));
        answer.whole = answer.cut = answer.over = true;
        answer.cutAt(1500);
        return [answer.samples, answer.pcm.length, answer.pcm[23999], answer.heardText, answer.heardMs];""",
    )
    assert kept == [24_000, 24_000, 8, "One two three four five six seven eight", 1500]


def test_a_recording_is_cut_by_time(page):
    """Positions count from the start, also after the oldest sound was forgotten."""
    cut = run(
        page,
        """
        const heard = new recording.Recording(1);
        for (let frame = 0; frame < 100; frame++) heard.push(new Int16Array(320).fill(frame));
        return [[...heard.cut(1500, 1540)].filter((_, n) => n % 320 === 0), heard.cut(0, 2000).length];""",
    )
    assert cut == [[75, 76], 16_000]


def test_the_archive_is_a_zip_that_others_can_open(page):
    """Names, contents and checksums are right, by Python's own reader; the sound is a WAV file."""
    packed = run(
        page,
        """
        const ramp = Int16Array.from({ length: 1000 }, (_, n) => n - 500);
        const five = { name: "fünf.txt", bytes: new TextEncoder().encode("five") };
        const entries = [five, { name: "a.wav", bytes: archive.wav(ramp) }];
        const bytes = archive.zip(entries, new Date(2026, 10, 24, 7, 25, 30));
        return btoa(String.fromCharCode(...bytes));""",
    )
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(packed))) as found:
        assert found.testzip() is None
        assert found.namelist() == ["fünf.txt", "a.wav"]
        assert found.getinfo("a.wav").date_time == (2026, 11, 24, 7, 25, 30)
        assert found.read("fünf.txt") == b"five"
        with wave.open(io.BytesIO(found.read("a.wav"))) as sound:
            assert (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (16_000, 1, 2)
            samples = np.frombuffer(sound.readframes(2000), dtype="<i2")
    assert np.array_equal(samples, np.arange(1000) - 500)


def test_samples_survive_base64(page):
    """int16 → base64 → int16, as Python reads it."""
    text = run(page, "return pcm.toBase64(Int16Array.from({ length: 20000 }, (_, n) => n - 10000));")
    assert np.array_equal(np.frombuffer(base64.b64decode(text), dtype="<i2"), np.arange(20_000) - 10_000)
    assert run(page, "return [...pcm.fromBase64(argument)].slice(0, 3);", text) == [-10_000, -9_999, -9_998]
