"""The page: a live conversation by voice, and a form for recordings and files. A client of the controller.

    python -m omni.serve.gradio_web --controller http://127.0.0.1:8000 --port 7860

    browser ─┬─ /          Gradio: the tab with the conversation (page/*.js fill it), and the tab with the form
             ├─ /page/…    those files
             └─ /live      the socket of a conversation ── live_proxy ── the controller's /v1/realtime

Starts without torch and without Ray. No analytics, no outside font or script.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from omni.audio.wav import SAMPLE_RATE
from omni.serve.client import AsyncClient
from omni.serve.config import API_KEY_VARIABLE
from omni.serve.live_proxy import MAX_MESSAGE_BYTES, LiveProxy
from omni.serve.protocol import AudioDelta, Done, Event, Failed, TextDelta

TITLE = "omni · speak with a language model"
FILES = Path(__file__).parent / "page"
HEAD = """<script type="module" src="page/page.js"></script>
<style>@media (max-width: 30rem) { gradio-app .main { padding: 0.25rem 0 !important } }</style>"""  # no room there
CONVERSATION = "<omni-live>This browser runs no scripts: use the other tab.</omni-live>"  # page.js fills it
SERVER: dict[str, Any] = {  # uvicorn's
    "ws": "websockets-sansio",  # takes one message at a time, and waits with the next for a browser that does not read
    "ws_max_size": MAX_MESSAGE_BYTES,
    "ws_per_message_deflate": False,
    "timeout_graceful_shutdown": 2,  # Gradio holds a connection of every visitor open
    "server_header": False,
}
USUAL = "as usual"  # the checkpoint's own adaptor
SEGMENT_SECONDS = 0.25  # shortest piece handed to the browser's player while more is on its way


class AnswerView:
    """What the page shows of one answer; grows with its events. Plain state: no Gradio in here."""

    def __init__(self) -> None:
        self.text = ""
        self.status = "Listening to your question …"
        self.pcm = bytearray()
        self.played_to = 0  # bytes already handed to the player

    def add(self, event: Event) -> None:
        if isinstance(event, TextDelta):
            self.text += event.text
        elif isinstance(event, AudioDelta):
            self.pcm += event.pcm16
            self.status = "Speaking …"
        elif isinstance(event, Done):
            self.status = self._summary(event)

    def segment(self, final: bool = False) -> tuple[int, np.ndarray] | None:
        """The samples that arrived since the last segment, once there are enough for the player."""
        waiting = len(self.pcm) - self.played_to
        if waiting == 0 or (not final and waiting < SEGMENT_SECONDS * SAMPLE_RATE * 2):
            return None
        samples = np.frombuffer(bytes(self.pcm[self.played_to :]), dtype="<i2")
        self.played_to = len(self.pcm)
        return SAMPLE_RATE, samples

    def whole(self) -> tuple[int, np.ndarray]:
        """All samples so far, to hear again."""
        return SAMPLE_RATE, np.frombuffer(bytes(self.pcm), dtype="<i2")

    def _summary(self, done: Done) -> str:
        seconds = done.num_samples / SAMPLE_RATE
        first = done.timings.get("first_audio")
        total = done.timings.get("total")
        parts = [f"first audio after **{first * 1000:.0f} ms**" if first is not None else "no sound"]
        parts.append(f"{seconds:.1f} s of speech")
        if total is not None:
            parts.append(f"done in {total:.1f} s")
        return " · ".join(parts)


class Files(StaticFiles):
    """The page's own files; a browser asks each time whether its copy is still the newest."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response


def make_app(controller: str, api_key: str | None = None) -> FastAPI:
    """The page, its files and its socket, as one app; `app.state.live` counts the sockets."""
    import gradio as gr

    live = LiveProxy(controller, api_key)
    app = FastAPI(title="omni page", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.live = live
    app.add_api_websocket_route("/live", live.endpoint)
    app.mount("/page", Files(directory=FILES))
    page = make_page(controller, api_key)
    page.queue(default_concurrency_limit=16, max_size=64)
    return gr.mount_gradio_app(app, page, "/", head=HEAD, footer_links=[], show_error=True)


def make_page(controller: str, api_key: str | None = None):
    """The Gradio Blocks of the page: the live conversation, and the form, talking to the controller at this URL."""
    import gradio as gr

    async def offer() -> Any:
        """A choice of who hears, where there is one."""
        try:
            async with AsyncClient(controller, api_key=api_key) as client:
                names = (await client.get("/v1/models"))["data"][0].get("adaptors", [])
        except (httpx.HTTPError, ValueError, LookupError):  # it will be told with the first question
            return gr.skip()
        return gr.update(choices=[(USUAL, ""), *names], value="", visible=bool(names))

    async def answer(
        path: str | None, temperature: float, max_tokens: float, adaptor: str | None = None
    ) -> AsyncIterator[tuple]:
        if not path:
            raise gr.Error("No question yet: record one with the microphone, or choose a file.", title="Nothing heard")
        view = AnswerView()
        yield "", None, view.status, gr.update(visible=False)
        question = await asyncio.to_thread(Path(path).read_bytes)
        options: dict[str, Any] = {"temperature": temperature, "max_new_tokens": int(max_tokens)}
        options["adaptor"] = adaptor or None
        async with (
            AsyncClient(controller, api_key=api_key) as client,
            aclosing(client.turn(question, **options)) as events,
        ):
            async for event in events:
                if isinstance(event, Failed):
                    raise gr.Error(f"{event.message} ({event.code})", duration=None)
                view.add(event)
                segment = view.segment(final=isinstance(event, Done))
                yield view.text, segment if segment else gr.skip(), view.status, gr.skip()
        replay = gr.update(value=view.whole(), visible=True) if view.pcm else gr.skip()
        yield view.text, gr.skip(), view.status, replay

    with gr.Blocks(title=TITLE, analytics_enabled=False) as page, gr.Tabs():
        with gr.Tab("Talk"):
            gr.HTML(CONVERSATION, apply_default_css=False)
        with gr.Tab("Recording or file", elem_id="form"), gr.Row():
            with gr.Column():
                question = gr.Audio(
                    sources=["microphone", "upload"], type="filepath", label="Your question", elem_id="question"
                )
                ask = gr.Button("Answer", variant="primary", elem_id="ask")
                adaptor = gr.Dropdown([(USUAL, "")], value="", label="Who hears you", visible=False, elem_id="adaptor")
                with gr.Accordion("Settings", open=False):
                    temperature = gr.Slider(0.0, 1.5, 0.0, step=0.1, label="Temperature (0 is greedy)")
                    max_tokens = gr.Slider(8, 512, 256, step=8, label="Longest answer, in tokens")
            with gr.Column():
                text = gr.Textbox(label="Answer", lines=4, elem_id="answer", interactive=False)
                speech = gr.Audio(label="Answer, as it comes", streaming=True, autoplay=True, elem_id="speech")
                status = gr.Markdown("Ready.", elem_id="status")
                replay = gr.Audio(label="Answer, again", visible=False, elem_id="replay")
        outputs = [text, speech, status, replay]
        inputs = [question, temperature, max_tokens, adaptor]
        page.load(offer, None, adaptor, api_name=False)
        gr.on(
            [ask.click, question.stop_recording, question.upload],
            answer,
            inputs,
            outputs,
            api_name="answer",
            trigger_mode="once",
            concurrency_limit=16,
        )
    return page


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m omni.serve.gradio_web", description="Serve the page.")
    parser.add_argument("--controller", default="http://127.0.0.1:8000", help="the controller's URL (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    app = make_app(args.controller, api_key=os.environ.get(API_KEY_VARIABLE))
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning", **SERVER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
