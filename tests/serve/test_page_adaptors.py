"""Where a checkpoint has further adaptors, both tabs of the page let a visitor choose who hears; else none shows it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from browser import RECORDING, chromium, page_server, visit
from fake_cluster import FakeCluster, config
from waiting import wait_until

from omni.serve.controller import make_app, server_settings

TALK = "document.querySelector('omni-live')?.conversation"


@pytest.fixture(scope="module")
def browser():
    with chromium(RECORDING) as found:
        yield found


@contextmanager
def page_of(directory: Path, browser, *names: str) -> Iterator[tuple]:
    """A visitor's page of a controller over a fake cluster, whose checkpoint has these adaptors."""
    for name in names:
        (directory / "adaptors" / name).mkdir(parents=True)
    cluster, settings = FakeCluster(), config(directory)
    app = make_app(settings, cluster)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(server_settings(app, settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            address = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with page_server(address, directory / "page.log") as url:
                page = visit(browser, url)
                page.wait_for_function(f"{TALK}?.session")
                yield page, cluster
                assert page.wrong == []
                page.context.close()
        finally:
            server.should_exit = True
            thread.join()


def ask_by_file(page) -> None:
    page.get_by_role("tab", name="Recording or file").click()
    page.get_by_label("Upload file").click()
    page.locator("#question input[type=file]").set_input_files(RECORDING)


def test_a_visitor_chooses_who_hears(tmp_path, browser):
    with page_of(tmp_path, browser, "law", "medical") as (page, cluster):
        page.get_by_role("button", name="Settings").first.click()
        field = page.locator("[name=adaptor]")
        assert field.locator("option").all_inner_texts() == ["as usual", "law", "medical"]
        field.select_option("law")
        page.wait_for_function(f"{TALK}?.session?.omni.adaptor === 'law'")
        page.reload()
        page.wait_for_function(f"{TALK}?.session?.omni.adaptor === 'law'")  # this browser remembers
        page.get_by_role("tab", name="Recording or file").click()
        page.locator("#adaptor input").click()
        page.get_by_role("option", name="medical").click()
        ask_by_file(page)
        wait_until(lambda: cluster.requests)
        page.wait_for_function("document.querySelector('#status').innerText.includes('first audio after')")
    assert [each.adaptor for each in cluster.requests] == ["medical"]


def test_where_there_is_only_one_nothing_is_offered(tmp_path, browser):
    with page_of(tmp_path, browser) as (page, cluster):
        page.get_by_role("button", name="Settings").first.click()
        page.locator("[name=voice]").wait_for(state="visible")
        assert not page.locator("[name=adaptor]").is_visible()
        ask_by_file(page)
        page.wait_for_function("document.querySelector('#status').innerText.includes('first audio after')")
        assert page.locator("#adaptor input").count() == 0 or not page.locator("#adaptor input").is_visible()
    assert [each.adaptor for each in cluster.requests] == [""]
