"""A visitor with a microphone: a real Chromium, a recording as its microphone, the real cluster behind the page."""

import re

import numpy as np
import pytest
from browser import RECORDING, chromium, visit
from waiting import wait_until

from omni.audio import wav
from omni.serve.client import Client
from omni.serve.gradio_web import AnswerView, parse
from omni.serve.protocol import AudioDelta, Done, TextDelta

TALK = "document.querySelector('omni-live').conversation"


@pytest.fixture
def browser_page(up):
    with chromium(RECORDING) as browser:
        yield visit(browser, up.page)


@pytest.fixture
def form(browser_page):
    browser_page.get_by_role("tab", name="Recording or file").click()
    browser_page.locator("#ask").wait_for(state="visible")
    return browser_page


def wait_for_answer(page) -> str:
    page.wait_for_function("document.querySelector('#status').innerText.includes('first audio after')")
    page.locator("#replay").wait_for(state="visible")
    return page.input_value("#answer textarea")


def elsewhere(page) -> list[str]:
    return [url for url in page.asked if not re.match(r"(http|ws)://127\.0\.0\.1|data:|blob:", url)]


def test_a_visitor_converses(browser_page, up):
    """Three turns on one line, the second interrupted: spoken, heard, remembered, and everything given back."""
    page = browser_page
    page.locator("omni-live #talk").wait_for()
    page.wait_for_function(f"{TALK}.session !== null")
    for number in (1, 2, 3):
        page.locator("#talk").focus()
        page.keyboard.down(" ")
        page.wait_for_function(f"{TALK}.hearing?.question.ms >= 1500")
        page.keyboard.up(" ")
        page.wait_for_function(f"{TALK}.turns[{number - 1}].answer?.heardMs > 0")
        if number == 2:
            page.keyboard.press("Escape")
        page.wait_for_function(f"{TALK}.turns[{number - 1}].answer.over && !{TALK}.turns[{number - 1}].answer.running")
    answers = page.evaluate(f"{TALK}.turns.map(({{ answer }}) => ({{ ...answer, pieces: null }}))")
    assert {answer["status"] for answer in answers if not answer["cut"]} <= {
        "completed",
        "incomplete",
    }  # random weights
    assert [answer["cut"] for answer in answers] == [False, True, False]
    assert all(answer["text"] and answer["error"] is None and answer["firstAudioMs"] > 0 for answer in answers)
    assert answers[0]["heardMs"] == pytest.approx(answers[0]["samples"] / 16, abs=1)
    assert page.wrong == []
    assert elsewhere(page) == []
    page.context.close()
    with Client(up.url) as client:
        wait_until(lambda: client.get("/v1/cluster")["controller"]["live_turns"] == 0)


def test_a_visitor_speaks_and_hears_the_answer(form):
    """Recorded by microphone, answered in text and sound, its time to first audio shown, nothing fetched elsewhere."""
    page = form
    page.locator("#question button.record").click()
    page.wait_for_function("document.querySelector('#question').innerText.includes('0:01')")
    page.locator("#question button.stop-button").first.click()
    assert wait_for_answer(page).strip()
    assert re.search(r"first audio after \d+ ms · \d+\.\d s of speech", page.inner_text("#status"))
    page.wait_for_function("[...document.querySelectorAll('audio')].some(a => a.currentTime > 0.3)")  # it is playing
    assert elsewhere(page) == []


def test_a_visitor_uploads_a_file(form):
    """A file chosen instead of spoken is answered as well."""
    page = form
    page.get_by_label("Upload file").click()
    page.locator("#question input[type=file]").set_input_files(str(RECORDING))
    assert wait_for_answer(page).strip()


def test_a_file_without_sound_is_named_as_such(form, tmp_path):
    """The controller's typed error reaches the visitor in words."""
    silence = tmp_path / "silence.wav"
    wav.write(silence, np.zeros(16_000, dtype=np.float32))
    page = form
    page.get_by_label("Upload file").click()
    page.locator("#question input[type=file]").set_input_files(str(silence))
    page.get_by_text("The audio is silent").first.wait_for()


def test_samples_reach_the_player_once_and_in_order():
    """Short deltas are gathered; the last piece goes out however short it is."""
    view, heard = AnswerView(), []
    pcm = np.arange(10_000, dtype="<i2")
    for first in range(0, 10_000, 1_000):
        view.add(AudioDelta(pcm[first : first + 1_000].tobytes(), first))
        heard.append(view.segment())
    heard.append(view.segment(final=True))
    pieces = [segment[1] for segment in heard if segment is not None]
    assert np.array_equal(np.concatenate(pieces), pcm)
    assert len(pieces) == 3
    assert view.segment(final=True) is None


def test_an_answer_without_sound_says_so():
    view = AnswerView()
    view.add(TextDelta("Hm."))
    view.add(Done("Hm.", "stop", 2, 0, 0, {"total": 0.5}))
    assert (view.text, view.status) == ("Hm.", "no sound · 0.0 s of speech · done in 0.5 s")


def test_the_page_listens_on_loopback_unless_told_otherwise():
    assert parse([]).host == "127.0.0.1"
