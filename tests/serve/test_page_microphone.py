"""A visitor who refuses the microphone, in a browser of their own."""

import pytest
from browser import RECORDING, chromium, page_server, visit
from fake_realtime import FakeRealtime


@pytest.fixture
def page(tmp_path):
    with (
        FakeRealtime() as fake,
        page_server(f"http://127.0.0.1:{fake.port}", tmp_path / "log") as url,
        chromium(RECORDING, microphone=False) as browser,
    ):
        yield visit(browser, url, microphone=False)


def test_a_refused_microphone_says_what_to_do(page):
    """In both ways to talk: which icon to click, and that one may try again; nothing else is held up."""
    for mode in ("Push to talk", "Hands-free"):
        page.get_by_text(mode, exact=True).click()
        page.locator("#talk").click()
        page.locator(".notice p", has_text="allow the microphone, and press the button again").wait_for()
        assert page.locator("#talk").get_attribute("aria-pressed") == "false"
        page.get_by_role("button", name="Dismiss").click()
        page.locator(".notice").wait_for(state="hidden")
    assert page.wrong == []
