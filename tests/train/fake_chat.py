"""An OpenAI-compatible endpoint on a free loopback port, in a thread, for tests. It replies with what it is given."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Reply = Callable[[dict], "str | tuple[int, bytes]"]  # the request's body → the content, or a status and raw bytes


class FakeChat:
    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[tuple[dict, dict]] = []  # body, headers


@contextmanager
def serving(reply: Reply) -> Iterator[FakeChat]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            fake.requests.append((body, dict(self.headers)))
            said = reply(body)
            if isinstance(said, str):
                said = (200, json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]}).encode())
            status, content = said
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake = FakeChat(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
