"""A visitor with a microphone: a real Chromium, a recording as its microphone, the real cluster behind the page."""

import re
from pathlib import Path

import numpy as np
import pytest

from omni.audio import wav
from omni.serve.gradio_web import AnswerView, parse
from omni.serve.protocol import AudioDelta, Done, TextDelta

RECORDING = Path(__file__).parents[1] / "golden" / "audio" / "utt0.wav"
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
]
PATIENCE = 120_000  # ms; the machine may be busy


@pytest.fixture
def browser_page(up):
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("needs Debian's chromium")
    with playwright.sync_playwright() as driver:
        flags = [*FLAGS, f"--use-file-for-fake-audio-capture={RECORDING}"]
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        page = browser.new_context(permissions=["microphone"]).new_page()
        page.set_default_timeout(PATIENCE)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(up.page)
        page.locator("#ask").wait_for()
        try:
            yield page
        finally:
            browser.close()


def wait_for_answer(page) -> str:
    page.wait_for_function("document.querySelector('#status').innerText.includes('first audio after')")
    page.locator("#replay").wait_for(state="visible")
    return page.input_value("#answer textarea")


def test_a_visitor_speaks_and_hears_the_answer(browser_page):
    """Recorded by microphone, answered in text and sound, its time to first audio shown, nothing fetched elsewhere."""
    page = browser_page
    page.locator("#question button.record").click()
    page.wait_for_function("document.querySelector('#question').innerText.includes('0:01')")
    page.locator("#question button.stop-button").first.click()
    assert wait_for_answer(page).strip()
    assert re.search(r"first audio after \d+ ms · \d+\.\d s of speech", page.inner_text("#status"))
    page.wait_for_function("[...document.querySelectorAll('audio')].some(a => a.currentTime > 0.3)")  # it is playing
    assert [url for url in page.asked if not url.startswith(("http://127.0.0.1", "data:", "blob:"))] == []


def test_a_visitor_uploads_a_file(browser_page):
    """A file chosen instead of spoken is answered as well."""
    page = browser_page
    page.get_by_label("Upload file").click()
    page.locator("#question input[type=file]").set_input_files(str(RECORDING))
    assert wait_for_answer(page).strip()


def test_a_file_without_sound_is_named_as_such(browser_page, tmp_path):
    """The controller's typed error reaches the visitor in words."""
    silence = tmp_path / "silence.wav"
    wav.write(silence, np.zeros(16_000, dtype=np.float32))
    page = browser_page
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
