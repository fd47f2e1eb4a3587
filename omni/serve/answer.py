"""`omni answer`: one spoken question, one spoken answer, in this process or on a cluster.

    omni answer question.wav -o answer.wav                                    # loads the checkpoint here
    omni answer question.wav -o answer.wav --url http://127.0.0.1:8000        # asks a controller
    omni answer *.wav -o answers/                                             # one after the other

Both ways give the same events; the printed text comes as it is made, and the times are the listener's: first audio is
counted from the question's end, and the real-time factor is the time to the answer's end over the answer's length.
"""

import argparse
import os
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from omni import checkpoints
from omni.audio import wav
from omni.audio.wav import SAMPLE_RATE, AudioError
from omni.serve import chunks
from omni.serve.client import Client
from omni.serve.config import API_KEY_VARIABLE
from omni.serve.protocol import AudioDelta, Done, Event, Failed, Sampling, TextDelta

TURN = "answer"  # the only one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("questions", nargs="+", type=Path, metavar="QUESTION", help="WAV, FLAC, MP3 … of one question")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="ANSWER", help="WAV file to write; a folder for several questions"
    )
    where = parser.add_argument_group("who answers")
    where.add_argument("--model", default="mini", help="mini, tiny or a checkpoint directory (default: %(default)s)")
    where.add_argument("--vocoder", metavar="DIR", help="vocoder directory (default: the checkpoint's own)")
    where.add_argument("--url", help=f"ask the controller there instead; its key is read from ${API_KEY_VARIABLE}")
    how = parser.add_argument_group("how")
    how.add_argument("--adaptor", metavar="NAME", help="of the checkpoint's adaptors/ (default: its own)")
    how.add_argument("--system", metavar="TEXT", help="written instructions before the question")
    how.add_argument("--temperature", type=float, default=Sampling.temperature, help="0 is greedy (default)")
    how.add_argument("--top-p", type=float, default=Sampling.top_p, help="default: %(default)s")
    how.add_argument("--top-k", type=int, default=Sampling.top_k, help="0 switches it off (default: %(default)s)")
    how.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="default: %(default)s")
    how.add_argument("--seed", type=int, default=0, help="default: %(default)s")


def main(args: argparse.Namespace) -> int:
    try:
        outputs = output_paths(args.questions, args.output)
        answerer: Answerer = There(args.url) if args.url else Here(args.model, args.vocoder)
    except (checkpoints.UnknownCheckpoint, ValueError, OSError) as exc:
        print(f"omni answer: {exc}", file=sys.stderr)
        return 2
    options = {name: getattr(args, name) for name in ("system", "adaptor", "temperature", "top_p", "top_k", "seed")}
    options["max_new_tokens"] = args.max_new_tokens
    failures = 0
    with answerer:
        for question, output in zip(args.questions, outputs, strict=True):
            if len(outputs) > 1:
                print(f"{question}: ", end="")
            failures += not answer(answerer, question, output, options)
    return 1 if failures else 0


def output_paths(questions: list[Path], output: Path | None) -> list[Path | None]:
    """Where each answer goes. Raises ValueError where two would meet."""
    if output is None:
        return [None] * len(questions)
    if len(questions) == 1 and not output.is_dir():
        return [output]
    if output.is_file():
        raise ValueError(f"{len(questions)} answers do not fit into one file; give a folder instead of {output}.")
    output.mkdir(parents=True, exist_ok=True)
    paths: list[Path | None] = [output / f"{question.stem}.wav" for question in questions]
    if len(set(paths)) < len(paths):
        raise ValueError("Two questions have the same name; answer them one by one.")
    return paths


class Answerer(Protocol):
    def ask(self, question: bytes, options: dict[str, Any]) -> Iterator[Event]: ...
    def __enter__(self) -> "Answerer": ...
    def __exit__(self, *_: object) -> None: ...


class There:
    """A controller answers."""

    def __init__(self, url: str) -> None:
        self._client = Client(url, api_key=os.environ.get(API_KEY_VARIABLE))

    def ask(self, question: bytes, options: dict[str, Any]) -> Generator[Event]:
        yield from self._client.turn(question, **options)

    def __enter__(self) -> "There":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()


class Here:
    """The checkpoint answers in this process: the engine with one slot, the vocoder through the same planner."""

    def __init__(self, model: str, vocoder: str | None = None) -> None:
        found = checkpoints.resolve(model, vocoder)
        # Only here: a question for a cluster needs no torch.
        from omni.engine.engine import Engine, EngineConfig
        from omni.model import checkpoint
        from omni.vocoder import checkpoint as voices
        from omni.vocoder.streaming import seconds_per_unit

        try:
            self._vocoder = voices.load(found.vocoder)
            told = EngineConfig(num_slots=1, seconds_per_unit=seconds_per_unit(self._vocoder.config))
            self._engine = Engine(checkpoint.load(found.model), told)
        except (checkpoint.CheckpointError, voices.VocoderCheckpointError) as exc:
            raise checkpoints.UnknownCheckpoint(str(exc)) from exc

    def ask(self, question: bytes, options: dict[str, Any]) -> Generator[Event]:
        from omni.engine.sequence import EngineError
        from omni.model.prompt import Utterance
        from omni.model.sampling import Sampling as ModelSampling

        started = time.monotonic()
        try:
            samples = wav.decode(question)
        except AudioError as exc:
            yield Failed(exc.code, str(exc), 400)
            return
        options = dict(options)
        system, adaptor = options.pop("system"), options.pop("adaptor", None) or ""
        conversation = [Utterance("system", text=system)] if system else []
        conversation.append(Utterance("user", speech=samples))
        try:
            yield from self._answer(conversation, ModelSampling(**options), adaptor, started)
        except EngineError as exc:
            yield Failed("engine_error", str(exc), 400)
        finally:
            self._engine.abort(TURN)

    def _answer(self, conversation: list, sampling: Any, adaptor: str, started: float) -> Generator[Event]:
        planner = chunks.planner(self._vocoder.config)
        text, num_tokens, num_samples, finish = "", 0, 0, None
        self._engine.add(TURN, conversation, sampling, adaptor=adaptor)
        while finish is None:
            for output in self._engine.step():
                if output.error is not None:
                    raise output.error
                text, num_tokens, finish = text + output.text, num_tokens + len(output.token_ids), output.finish
                planner.push(output.units)
                if output.text:
                    yield TextDelta(output.text)
            if finish:
                planner.finish()
            for pcm in self._vocode(planner):
                yield AudioDelta(pcm, num_samples)
                num_samples += len(pcm) // 2
        timings = {"total": time.monotonic() - started}
        yield Done(text, finish, num_tokens, planner.units_received, num_samples, timings)

    def _vocode(self, planner: Any) -> Generator[bytes]:
        from omni.vocoder.render import render

        while (chunk := planner.next()) is not None:
            (reply,) = render(self._vocoder, [chunk])
            if isinstance(reply, Exception):
                raise reply
            planner.accept(reply)
            if reply.pcm:
                yield reply.pcm

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@dataclass
class Heard:
    """What a listener got of one answer, and when."""

    asked: float = field(default_factory=time.monotonic)
    pcm: bytearray = field(default_factory=bytearray)
    first_audio: float | None = None  # seconds after the question's end
    total: float = 0.0
    failed: Failed | None = None

    def hear(self, event: Event) -> None:
        self.total = time.monotonic() - self.asked
        if isinstance(event, AudioDelta):
            self.pcm += event.pcm16
            if self.first_audio is None:
                self.first_audio = self.total
        elif isinstance(event, Failed):
            self.failed = event

    @property
    def seconds(self) -> float:
        return len(self.pcm) / 2 / SAMPLE_RATE

    def summary(self) -> str:
        if self.first_audio is None:
            return f"(no sound · {self.total:.2f} s)"
        return (
            f"(first audio after {1000 * self.first_audio:.0f} ms · {self.seconds:.2f} s of speech in "
            f"{self.total:.2f} s · real-time factor {self.total / self.seconds:.2f})"
        )


def answer(answerer: Answerer, question: Path, output: Path | None, options: dict[str, Any]) -> bool:
    """Ask one question, print and save its answer. False, and a reason on stderr, where there is none."""
    try:
        data = question.read_bytes()
    except OSError as exc:
        print(f"omni answer: {question}: {exc.strerror}", file=sys.stderr)
        return False
    heard = Heard()
    for event in answerer.ask(data, options):
        heard.hear(event)
        if isinstance(event, TextDelta):
            print(event.text, end="", flush=True)
    print(f"\n{heard.summary()}" if heard.failed is None else "")
    if heard.failed is not None:
        print(f"omni answer: {question}: {heard.failed.message} ({heard.failed.code})", file=sys.stderr)
        return False
    if output is not None:
        output.write_bytes(wav.wav_bytes(bytes(heard.pcm)))
    return True
