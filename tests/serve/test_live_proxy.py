"""Between a browser and the controller: everything passes untouched, both ends close, the key stays here."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvicorn
from fake_cluster import until
from fastapi import FastAPI
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus

from omni.serve.gradio_web import SERVER
from omni.serve.live_proxy import LiveProxy

KEY = "the-key-of-the-page"
Talk = Callable[[ServerConnection], Awaitable[None]]


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """The app with the page server's settings; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, **SERVER))
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


@asynccontextmanager
async def between(talk: Talk = echo, process_request=None, **options) -> AsyncIterator[tuple[LiveProxy, str]]:
    """A controller that talks so, the proxy before it, and the address that browsers use."""
    async with serve(talk, "127.0.0.1", 0, process_request=process_request, compression=None) as controller:
        port = controller.sockets[0].getsockname()[1]
        proxy = LiveProxy(f"http://127.0.0.1:{port}", KEY, **options)
        app = FastAPI()
        app.add_api_websocket_route("/live", proxy.endpoint)
        async with served(app) as url:
            yield proxy, url.replace("http", "ws") + "/live"
            await until(lambda: proxy.live == 0)


def visitor(url: str, **options) -> connect:
    return connect(url, compression=None, proxy=None, **options)


async def closing(browser: ClientConnection) -> tuple[int, str]:
    """The code and reason that the other end closes with."""
    with pytest.raises(ConnectionClosed) as closed:
        async with asyncio.timeout(10):
            while True:
                await browser.recv()
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


async def test_messages_pass_untouched_and_in_order():
    """Text stays text and bytes stay bytes, empty and large ones too."""
    messages = ["{}", b"\x00\xff" * 320, "ü" * 70_000, b"", b"x" * 200_000, "last"]
    async with between() as (proxy, url), visitor(url) as browser:
        for message in messages:
            await browser.send(message)
        assert [await browser.recv() for _ in messages] == messages
        assert (proxy.opened, proxy.live) == (1, 1)


async def test_the_key_is_added_and_what_a_browser_sends_beside_it_is_not_passed():
    """The controller gets the page's key, and of the browser's headers none; the query goes through."""
    seen = []

    async def look(connection: ServerConnection) -> None:
        seen.append(connection.request)
        await connection.close(1000)

    async with between(look) as (_, url):
        headers = {"authorization": "Bearer stolen", "cookie": "a=b"}
        async with visitor(f"{url}?model=mini", additional_headers=headers) as browser:
            assert await closing(browser) == (1000, "")
    assert seen[0].path == "/v1/realtime?model=mini"
    assert seen[0].headers.get_all("authorization") == [f"Bearer {KEY}"]
    assert "cookie" not in seen[0].headers


@pytest.mark.parametrize("code", [1000, 1008, 1011, 1012, 1013, 4001])
async def test_the_controllers_close_reaches_the_browser(code):
    """Code and reason: they say whether to come back, and when."""
    async with between(lambda connection: connection.close(code, "why")) as (_, url), visitor(url) as browser:
        assert await closing(browser) == (code, "why")


async def test_the_browsers_close_reaches_the_controller():
    ended = asyncio.get_running_loop().create_future()

    async def listen(connection: ServerConnection) -> None:
        await connection.wait_closed()
        ended.set_result((connection.close_code, connection.close_reason))

    async with between(listen) as (proxy, url):
        async with visitor(url) as browser:
            await browser.close(4000, "enough")
        async with asyncio.timeout(10):
            assert await ended == (4000, "enough")
        await until(lambda: proxy.closed == 1)


async def test_a_browser_that_breaks_off_ends_the_other_side():
    """No close frame, only a broken line: the controller's socket is closed all the same."""
    ended = asyncio.Event()

    async def listen(connection: ServerConnection) -> None:
        await connection.wait_closed()
        ended.set()

    async with between(listen) as (_, url), visitor(url) as browser:
        browser.transport.abort()
        async with asyncio.timeout(10):
            await ended.wait()


async def test_a_controller_that_breaks_off_is_told_as_a_bad_gateway():
    async def break_off(connection: ServerConnection) -> None:
        connection.transport.abort()

    async with between(break_off) as (_, url), visitor(url) as browser:
        assert (await closing(browser))[0] == 1014


@pytest.mark.parametrize(
    ("status", "code", "expected", "words"),
    [
        (503, "busy", 1013, "All taken."),
        (503, "draining", 1012, "All taken."),
        (401, "invalid_api_key", 1008, "All taken."),
        (404, None, 1008, "This controller holds no live conversations."),
        (500, None, 1014, "The controller refuses with HTTP 500."),
    ],
)
async def test_a_refused_handshake_becomes_a_close_code(status, code, expected, words):
    """A script learns nothing of a failed handshake, so the reason comes as a close."""
    body = json.dumps({"error": {"code": code, "message": "All taken."}}) if code else ""

    def refuse(connection, request):
        return connection.respond(status, body)

    async with between(process_request=refuse) as (proxy, url):
        async with visitor(url) as browser:
            assert await closing(browser) == (expected, words)
        await until(lambda: (proxy.opened, proxy.closed) == (1, 1))


async def test_no_controller_is_told_as_a_bad_gateway():
    app, proxy = FastAPI(), LiveProxy("http://127.0.0.1:9")
    app.add_api_websocket_route("/live", proxy.endpoint)
    async with served(app) as url:
        async with visitor(url.replace("http", "ws") + "/live") as browser:
            assert await closing(browser) == (1014, "The controller does not answer.")
        await until(lambda: proxy.live == 0)


async def test_another_sites_page_is_refused():
    """Any site may open a socket to us from a visitor's browser; only our own page gets one."""
    async with between() as (proxy, url):
        with pytest.raises(InvalidStatus) as refused:
            await visitor(url, origin="http://elsewhere.example")
        assert refused.value.response.status_code == 403
        assert proxy.opened == 0
        host = url.removeprefix("ws://").removesuffix("/live")
        async with visitor(url, origin=f"http://{host}") as browser:
            await browser.send("hello")
            assert await browser.recv() == "hello"


async def test_one_more_visitor_than_there_is_room_for_is_told_so():
    async with between(max_sockets=1) as (_, url), visitor(url) as first:
        async with visitor(url) as second:
            assert (await closing(second))[0] == 1013
        await first.send("still here")
        assert await first.recv() == "still here"


async def test_a_browser_that_does_not_read_holds_the_controller_back():
    """What lies between is bounded: the controller's next message waits, and arrives when the browser reads again."""
    sent, portion = 0, b"x" * 65_536
    stalled = asyncio.Event()

    async def pour(connection: ServerConnection) -> None:
        nonlocal sent
        while sent < 2_000:  # 131 MB: more than any buffer may hold
            try:
                async with asyncio.timeout(0.5):
                    await connection.send(portion)
            except TimeoutError:
                stalled.set()
                await connection.send(b"")  # goes on after the message that waits
                return
            sent += 1

    async with between(pour) as (_, url), visitor(url, max_queue=1) as browser:
        async with asyncio.timeout(30):
            await stalled.wait()
        assert sent * len(portion) < 64 * 2**20
        received = 0
        async with asyncio.timeout(30):
            while await browser.recv():
                received += 1
    assert received >= sent


async def test_the_sockets_of_many_visitors_are_all_given_back():
    """Twenty come and go, each in its own way: as many closed as opened."""

    async def visit(url: str, number: int) -> None:
        async with visitor(url) as browser:
            await browser.send(str(number))
            assert await browser.recv() == str(number)
            if number % 3 == 0:
                browser.transport.abort()
            elif number % 3 == 1:
                await browser.close(1001)

    async with between() as (proxy, url):
        await asyncio.gather(*(visit(url, number) for number in range(20)))
        await until(lambda: (proxy.opened, proxy.closed) == (20, 20))
