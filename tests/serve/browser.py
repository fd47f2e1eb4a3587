"""A visitor: a real Chromium with a recording as its microphone, and the page's server.

with page_server(controller_url, log) as url, chromium(recording) as browser:
    page = visit(browser, url)
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from waiting import free_port, wait_until

from omni.serve.gradio_web import FILES, Files

RECORDING = Path(__file__).parents[1] / "golden" / "audio" / "utt0.wav"

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE = 120_000  # ms; the machine may be busy
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
]


@contextmanager
def chromium(recording: Path, *, microphone: bool = True) -> Iterator:
    """A browser whose microphone hears this WAV file, again and again; or that refuses it, as a visitor may."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("needs Debian's chromium")
    flags = [*FLAGS, f"--use-file-for-fake-audio-capture={recording}"]
    flags.append("--use-fake-ui-for-media-stream" if microphone else "--use-fake-ui-for-media-stream=deny")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        try:
            yield browser
        finally:
            browser.close()


def visit(browser, url: str, *, microphone: bool = True, width: int = 1100, height: int = 800, **more):
    """A new visitor's page; `page.asked` lists what it requests, `page.wrong` its scripts' errors."""
    granted = ["microphone"] if microphone else []
    context = browser.new_context(permissions=granted, viewport={"width": width, "height": height}, **more)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.asked, page.wrong = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("websocket", lambda live: page.asked.append(live.url))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.goto(url)
    return page


@contextmanager
def page_server(controller: str, log: Path, *, port: int = 0, api_key: str = "") -> Iterator[str]:
    """The page's own process, as `omni up` starts it; yields its URL."""
    port = port or free_port()
    command = [sys.executable, "-m", "omni.serve.gradio_web", "--controller", controller, "--port", str(port)]
    with log.open("ab") as output:
        environment = os.environ | {"OMNI_API_KEY": api_key}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        wait_until(lambda: answers(port), process)
        yield f"http://127.0.0.1:{port}"
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def page_files() -> Iterator[str]:
    """Only the page's files, without Gradio; yields their URL."""
    app = Starlette(routes=[Mount("/page", Files(directory=FILES))])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/page"
        finally:
            server.should_exit = True
            thread.join()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
