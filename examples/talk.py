"""Talk with a running cluster in the terminal: press Enter to speak and Enter to be answered.

    python examples/talk.py                                             # microphone and loudspeaker
    python examples/talk.py --file question.wav --output answer.wav     # neither

Sound devices need the package `sounddevice`; --file does not. The key is read from $OMNI_API_KEY. Ctrl-C ends it.
"""

import argparse
import asyncio
import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from omni.audio import wav
from omni.serve.realtime_client import (
    RATE,
    Answered,
    Problem,
    RealtimeError,
    RealtimeSession,
    Resumed,
    Sound,
    Words,
    connect_realtime,
)

BLOCK = RATE // 50  # samples the microphone gives at a time: 20 ms
REPORT_SECONDS = 0.25  # between two words to the cluster about what was heard
ASKED_AT_MOST = 3  # times, when the line breaks in an answer
ANSWER_SECONDS = 120.0


def main() -> int:
    args = arguments()
    try:
        return asyncio.run(from_file(args) if args.file else with_devices(args))
    except KeyboardInterrupt:
        return 130
    except (RealtimeError, OSError, wav.AudioError) as exc:
        print(f"talk: {exc}", file=sys.stderr)
        return 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the controller (default: %(default)s)")
    parser.add_argument("--file", type=Path, help="a recording to ask, instead of the microphone")
    parser.add_argument("--output", type=Path, help="with --file: where the spoken answer goes, as WAV")
    parser.add_argument("--instructions", default="", help="written instructions before the conversation")
    args = parser.parse_args()
    if args.output and not args.file:
        parser.error("--output needs --file")
    return args


def connected(args: argparse.Namespace) -> contextlib.AbstractAsyncContextManager[RealtimeSession]:
    settings = {"instructions": args.instructions}
    return connect_realtime(args.url, os.environ.get("OMNI_API_KEY"), settings=settings)


# --- a file -----------------------------------------------------------------------------------------------------------


async def from_file(args: argparse.Namespace) -> int:
    question = wav.to_pcm16(await asyncio.to_thread(wav.read, args.file))
    async with connected(args) as session, asyncio.timeout(ANSWER_SECONDS):
        answered, pcm16 = await ask(session, question)
    if args.output and pcm16:
        await asyncio.to_thread(args.output.write_bytes, wav.wav_bytes(pcm16))
    if answered.status == "completed":
        return 0
    print(f"talk: the answer is {answered.status} ({answered.reason or 'no reason given'})", file=sys.stderr)
    return 1


async def ask(session: RealtimeSession, question: bytes) -> tuple[Answered, bytes]:
    """The answer's end and its sound, int16 at 16 kHz. A question that the line took with it is asked again."""
    asked, pcm16 = 0, b""
    answered = Answered("incomplete", "connection_lost")
    while asked < ASKED_AT_MOST:
        asked, pcm16, since = asked + 1, b"", time.monotonic()
        await session.ask(question)
        async for event in session:
            match event:
                case Words(text=text):
                    print(text, end="", flush=True)
                case Sound(pcm16=portion):
                    if not pcm16:
                        first_ms = 1000 * (time.monotonic() - since)
                    pcm16 += portion
                case Problem(code=code, message=message):
                    raise RealtimeError(code, message)
                case Answered(reason="connection_lost"):
                    print(" …")
                case Answered() as answered:
                    print(f"\nfirst audio {first_ms:.0f} ms" if pcm16 else "")
                    return answered, pcm16
                case Resumed(unanswered=True):
                    break
        else:
            break  # the session is over
    return answered, pcm16


# --- microphone and loudspeaker ---------------------------------------------------------------------------------------


class Speaker:
    """Plays what it is given, and knows how much of it was heard. `fill` is called by the device, on its own thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = bytearray()
        self._played = 0  # bytes of this answer
        self.item_id = ""

    def play(self, item_id: str, pcm16: bytes) -> None:
        with self._lock:
            if item_id != self.item_id:
                self.item_id, self._played = item_id, 0
                self._waiting.clear()
            self._waiting += pcm16

    def silence(self) -> float:
        """At once. Returns the milliseconds that were heard."""
        with self._lock:
            self._waiting.clear()
        return self.heard_ms

    @property
    def heard_ms(self) -> float:
        return 1000 * self._played / 2 / RATE

    def fill(self, block: Any, *_: object) -> None:
        with self._lock:
            portion = bytes(self._waiting[: len(block)])
            del self._waiting[: len(portion)]
            self._played += len(portion)
        block[:] = portion + bytes(len(block) - len(portion))


async def with_devices(args: argparse.Namespace) -> int:
    try:
        import sounddevice
    except (ImportError, OSError) as exc:  # OSError: PortAudio itself is missing
        print(f"talk: no sound devices ({exc}). Do `pip install sounddevice`, or use --file.", file=sys.stderr)
        return 2
    speaker, loop = Speaker(), asyncio.get_running_loop()
    blocks: asyncio.Queue[bytes | None] = asyncio.Queue()

    def record(block: Any, *_: object) -> None:
        loop.call_soon_threadsafe(blocks.put_nowait, bytes(block))

    device: dict[str, Any] = {"samplerate": RATE, "channels": 1, "dtype": "int16", "blocksize": BLOCK}
    async with connected(args) as session:
        with sounddevice.RawOutputStream(callback=speaker.fill, **device), entered_lines() as lines:
            microphone = sounddevice.RawInputStream(callback=record, **device)
            try:
                await converse(session, speaker, microphone, blocks, lines)
            finally:
                microphone.close()
    return 0


@contextlib.contextmanager
def entered_lines():
    """A queue with an item for every Enter, and None at the end of the input."""
    lines: asyncio.Queue[str | None] = asyncio.Queue()
    loop, stdin = asyncio.get_running_loop(), sys.stdin.fileno()

    def read() -> None:
        typed = os.read(stdin, 4096)  # not readline, which may hold a second line back
        for _ in range(typed.count(b"\n")):
            lines.put_nowait("")
        if not typed:
            lines.put_nowait(None)
            loop.remove_reader(stdin)

    loop.add_reader(stdin, read)
    try:
        yield lines
    finally:
        loop.remove_reader(stdin)


async def converse(session: RealtimeSession, speaker: Speaker, microphone: Any, blocks: Any, lines: Any) -> None:
    """Until the input or the session ends."""
    tasks = [
        asyncio.create_task(listen(session, speaker)),
        asyncio.create_task(speak(session, speaker, microphone, blocks, lines)),
        asyncio.create_task(report(session, speaker)),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def speak(session: RealtimeSession, speaker: Speaker, microphone: Any, blocks: Any, lines: Any) -> None:
    loop = asyncio.get_running_loop()
    while True:
        print("\n[Enter] speak", flush=True)
        if await lines.get() is None:
            return
        await session.interrupt(heard_ms=speaker.silence())
        microphone.start()
        print("[Enter] done", flush=True)
        recording = asyncio.create_task(send_blocks(session, blocks))
        try:
            line = await lines.get()
            microphone.stop()
            loop.call_soon(blocks.put_nowait, None)  # after the last blocks
            await recording
        finally:
            recording.cancel()
        if line is None:
            return
        await session.commit()


async def send_blocks(session: RealtimeSession, blocks: Any) -> None:
    while (block := await blocks.get()) is not None:
        await session.append(block)


async def listen(session: RealtimeSession, speaker: Speaker) -> None:
    async for event in session:
        match event:
            case Words(text=text):
                print(text, end="", flush=True)
            case Sound(item_id=item_id, pcm16=pcm16):
                speaker.play(item_id, pcm16)
            case Answered(timing=timing) if "first_audio_ms" in timing:
                print(f"\nfirst audio {timing['first_audio_ms']:.0f} ms", flush=True)
            case Problem(message=message):
                print(f"\n{message}", flush=True)
            case Resumed(remembers=remembers, unanswered=unanswered):
                speaker.silence()
                forgotten = "" if remembers else " What was said before is forgotten."
                print(f"\nThe line was lost and is back.{forgotten}{' Ask again.' if unanswered else ''}", flush=True)


async def report(session: RealtimeSession, speaker: Speaker) -> None:
    told: tuple[str, float] = ("", 0.0)
    while True:
        await asyncio.sleep(REPORT_SECONDS)
        now = (speaker.item_id, speaker.heard_ms)
        if speaker.item_id and now != told:
            told = now
            await session.played(*now)


if __name__ == "__main__":
    sys.exit(main())
