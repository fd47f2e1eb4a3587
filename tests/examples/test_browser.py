"""examples/browser.html in a real Chromium, with a recording as its microphone and a controller over a fake cluster."""

import asyncio
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "serve"))
from browser import RECORDING, chromium, visit  # noqa: E402
from fake_cluster import FakeCluster, config, over_tcp, whole_answer  # noqa: E402
from realtime_client import talk  # noqa: E402
from store_away import StoreAway  # noqa: E402

from omni.audio import wav  # noqa: E402
from omni.serve.controller import make_app  # noqa: E402


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def files() -> Iterator[str]:
    """The folder of examples, as `python -m http.server` serves it."""
    handler = functools.partial(Silent, directory=str(ROOT / "examples"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def hold_and_let_go(page) -> None:
    page.locator("#talk:enabled").hover()
    page.mouse.down()
    page.wait_for_function("/Listening, [1-9]/.test(document.getElementById('status').textContent)")
    page.mouse.up()
    page.wait_for_function("/First audio \\d+ ms/.test(document.getElementById('status').textContent)")


@contextmanager
def visitor(controller: str) -> Iterator:
    with files() as url, chromium(RECORDING) as browser:
        yield visit(browser, f"{url}/browser.html?url={controller.replace('http', 'ws')}")


def says(page, words: str) -> None:
    page.locator("#status", has_text=words).wait_for()


def two_turns(controller: str) -> tuple[str, list[str]]:
    """The second answer's words, and the scripts' errors."""
    with visitor(controller) as page:
        hold_and_let_go(page)
        page.locator("#answer[aria-busy=false]").wait_for()  # heard to its end
        hold_and_let_go(page)
        return page.locator("#answer").inner_text(), page.wrong


async def test_two_turns_by_push_to_talk(tmp_path):
    """What the microphone heard is asked, the words are shown; the second turn knows the first."""
    cluster = FakeCluster()
    async with over_tcp(make_app(config(tmp_path), cluster)) as url:
        words, wrong = await asyncio.to_thread(two_turns, url)
    assert wrong == [] and words == whole_answer()[0]
    first, second = cluster.requests
    # the page shows tenths: "1.0 s" begins at 0.95 s
    heard = wav.from_pcm16(first.messages[-1].pcm16)
    assert len(heard) >= 15_000 and np.abs(heard).max() > 0.01
    assert [each.role for each in second.messages] == ["user", "assistant", "user"]
    assert second.messages[1].text == words


def with_a_key(controller: str) -> list[str]:
    with visitor(controller) as page:
        says(page, "does it want a key?")
        page.locator("#key").fill("wrong")
        page.locator("#key").press("Enter")
        says(page, "does it want a key?")
        page.locator("#key").fill("secret")
        page.locator("#key").press("Enter")
        says(page, "Ready.")
        assert "secret" not in page.url and not any("secret" in each for each in page.asked)
        return page.wrong


async def test_it_takes_a_key(tmp_path):
    """It is said that one may be wanted; it goes to the controller as a subprotocol, and into no address."""
    async with over_tcp(make_app(config(tmp_path), FakeCluster(), api_key="secret")) as url:
        assert await asyncio.to_thread(with_a_key, url) == []


async def test_a_store_that_is_away_loses_no_session(tmp_path):
    """It tries again, and the second turn still knows the first."""
    cluster, store = FakeCluster(), StoreAway(10, 10**7)
    app = make_app(config(tmp_path), cluster, store=store)
    registry, loop = app.state.registry, asyncio.get_running_loop()

    async def restart() -> None:
        store.away = 2
        await registry.drain(5)
        registry.draining = False  # as if another controller took its place

    def converse(url: str) -> list[str]:
        with visitor(url) as page:
            hold_and_let_go(page)
            page.locator("#answer[aria-busy=false]").wait_for()
            asyncio.run_coroutine_threadsafe(restart(), loop).result(30)
            says(page, "The session store is away: trying again in")
            says(page, "Ready.")
            hold_and_let_go(page)
            return page.wrong

    async with over_tcp(app) as url:
        assert await asyncio.to_thread(converse, url) == []
    assert store.away == 0
    assert [each.role for each in cluster.requests[1].messages] == ["user", "assistant", "user"]


async def test_it_comes_back(tmp_path):
    """Where every place is taken it tries again, and again where the controller restarts: the session goes on."""
    cluster = FakeCluster()
    app = make_app(config(tmp_path, max_sockets=1), cluster)
    registry, loop = app.state.registry, asyncio.get_running_loop()

    async def restart() -> None:
        await registry.drain(5)
        registry.draining = False  # as if another controller took its place

    def converse(url: str, leave: Callable[[], None]) -> list[str]:
        with visitor(url) as page:
            says(page, "Every place is taken: trying again in")
            leave()
            hold_and_let_go(page)
            page.locator("#answer[aria-busy=false]").wait_for()
            asyncio.run_coroutine_threadsafe(restart(), loop).result(30)
            says(page, "Ready.")
            hold_and_let_go(page)
            return page.wrong

    async with over_tcp(app) as url:
        full = asyncio.Event()
        async with talk(url):
            work = asyncio.create_task(asyncio.to_thread(converse, url, lambda: loop.call_soon_threadsafe(full.set)))
            seen = asyncio.create_task(full.wait())
            await asyncio.wait({work, seen}, return_when=asyncio.FIRST_COMPLETED)
            seen.cancel()
        assert await work == []
    assert [each.role for each in cluster.requests[1].messages] == ["user", "assistant", "user"]
