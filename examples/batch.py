"""Ask every recording of a folder, several at a time, and keep the spoken answers with their words.

    python examples/batch.py questions --output answers --at-once 4

question.flac becomes question.wav and, last, question.json. What has both already, from the same recording, is not
asked again: after Ctrl-C or an error, run the same line to go on. The key is read from $OMNI_API_KEY.
"""

import argparse
import asyncio
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

from tqdm import tqdm

from omni.audio.wav import wav_bytes
from omni.serve.client import AsyncClient
from omni.serve.protocol import AudioDelta, Done, Failed

SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".aiff", ".m4a", ".mp4", ".webm", ".aac"}
ATTEMPTS = 6  # of one recording, while the cluster says to come back later
LONGEST_WAIT = 30.0  # seconds between two of them


def main() -> int:
    args = arguments()
    recordings = sorted(path for path in args.recordings.iterdir() if path.suffix.lower() in SUFFIXES)
    args.output.mkdir(parents=True, exist_ok=True)
    todo = [path for path in recordings if not is_finished(path, args.output)]
    print(f"{len(recordings)} recordings, {len(recordings) - len(todo)} answered before", file=sys.stderr)
    try:
        failures = asyncio.run(answer_all(todo, args))
    except KeyboardInterrupt:
        print("batch: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    for path, failed in failures:
        print(f"batch: {path}: {failed.code}: {failed.message}", file=sys.stderr)
    return 1 if failures else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path, help="a folder of recordings")
    parser.add_argument("--output", type=Path, required=True, help="the folder for the answers")
    parser.add_argument("--at-once", type=int, default=4, metavar="N", help="turns at once (default: %(default)s)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the controller (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of every answer")
    parser.add_argument("--max-new-tokens", type=int, help="of every answer (default: the server's limit)")
    args = parser.parse_args()
    if args.at_once < 1:
        parser.error(f"--at-once is {args.at_once}; it must be 1 or more")
    if not args.recordings.is_dir():
        parser.error(f"{args.recordings} is no folder")
    if args.output.resolve() == args.recordings.resolve():
        parser.error("--output must be another folder: answers would replace recordings")
    stems = [path.stem for path in args.recordings.iterdir() if path.suffix.lower() in SUFFIXES]
    if doubled := sorted({stem for stem in stems if stems.count(stem) > 1}):
        parser.error(f"two recordings would have one answer: {', '.join(doubled)}. Rename one.")
    return args


def is_finished(recording: Path, output: Path) -> bool:
    """Its answer is there, and is to this very recording."""
    try:
        kept = json.loads((output / f"{recording.stem}.json").read_text())
        return kept["sha256"] == digest(recording.read_bytes()) and (output / f"{recording.stem}.wav").exists()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def answer_all(todo: list[Path], args: argparse.Namespace) -> list[tuple[Path, Failed]]:
    """Those that have no answer in the end, and why."""
    failures: list[tuple[Path, Failed]] = []
    paths = iter(todo)
    with tqdm(total=len(todo), unit="turn") as bar:
        async with (
            AsyncClient(args.url, api_key=os.environ.get("OMNI_API_KEY")) as client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(min(args.at_once, len(todo))):
                group.create_task(answer_some(client, paths, args, failures, bar))
    return failures


async def answer_some(
    client: AsyncClient, paths: Iterator[Path], args: argparse.Namespace, failures: list[tuple[Path, Failed]], bar: tqdm
) -> None:
    """One of those that work at once: takes the next recording until there is none."""
    for path in paths:
        failed = await answer(client, path, args)
        if failed is not None:
            failures.append((path, failed))
        bar.update()


async def answer(client: AsyncClient, recording: Path, args: argparse.Namespace) -> Failed | None:
    data = await asyncio.to_thread(recording.read_bytes)
    options = {"seed": args.seed, "max_new_tokens": args.max_new_tokens}
    for attempt in range(1, ATTEMPTS + 1):
        since, first_ms, pcm16 = time.monotonic(), None, bytearray()
        failed: Failed | None = None
        async with aclosing(client.turn(data, **options)) as events:
            async for event in events:
                match event:
                    case AudioDelta(pcm16=portion):
                        first_ms = first_ms if pcm16 else round(1000 * (time.monotonic() - since))
                        pcm16 += portion
                    case Done() as done:
                        kept = {
                            "question": recording.name,
                            "sha256": digest(data),
                            "text": done.text,
                            "finish": done.finish,
                            "num_tokens": done.num_tokens,
                            "num_samples": done.num_samples,  # at 16 kHz
                            "first_audio_ms": first_ms,
                            "total_ms": round(1000 * (time.monotonic() - since)),
                        }
                        await asyncio.to_thread(keep, args.output / recording.stem, bytes(pcm16), kept)
                    case Failed():
                        failed = event
        if failed is None or failed.retry_after is None or attempt == ATTEMPTS:
            return failed
        await asyncio.sleep(min(failed.retry_after * 2 ** (attempt - 1), LONGEST_WAIT))
    raise AssertionError("the last attempt returns")


def keep(name: Path, pcm16: bytes, words: dict) -> None:
    """Each file whole or not at all; the JSON, which says that both are there, last."""
    contents = {".wav": wav_bytes(pcm16), ".json": (json.dumps(words, ensure_ascii=False, indent=2) + "\n").encode()}
    for suffix, content in contents.items():
        partial = name.with_name(f"{name.name}{suffix}.partial")
        partial.write_bytes(content)
        partial.replace(name.with_name(name.name + suffix))


if __name__ == "__main__":
    sys.exit(main())
