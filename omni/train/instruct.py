"""Instructions in writing → spoken instructions with spoken answers, as InstructS2S was made (arXiv 2409.06666, 3).

    omni train data --instructions alpaca.jsonl --output runs/data --voices hibari,joe --jobs 2
    omni train data --instructions ultrachat.jsonl --output data --turns 4 --units runs/mini/voice/units.safetensors
    omni train data --instructions alpaca.jsonl --output data --rewriter openai:http://127.0.0.1:8080/v1#llama

A line in is an instruction with its response, or a dialogue (dialogues.py). Everything is rewritten to be said, by rule
(speakable.py) or by a language model; the questions of a dialogue are spoken by one of many voices, in one room, the
answers by one voice. A recogniser hears both; what it does not hear back is left out, and ends its dialogue. Out come
manifest.jsonl, a row for every turn with the turns before it as its history, questions/, answers/ and card.md; with
--units (or --mhubert) every row has the units of its answer. A line's rows follow from the seed, the line and the
settings alone, whoever makes them, and are kept at once: a killed run goes on where it was.
"""

import argparse
import hashlib
import json
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from omni.audio import wav
from omni.audio.wav import SAMPLE_RATE
from omni.train import dialogues, keep, manifest, unit_reader, voices, words
from omni.train.card import card
from omni.train.chat import Chat, ChatError
from omni.train.dialogues import Source, Turn
from omni.train.manifest import ManifestError
from omni.train.speakable import speakable
from omni.train.unit_reader import Reader, UnitsError
from omni.train.units import merge

REWRITE = (
    "Rewrite the user's written instruction as a person would say it to a voice assistant: brief, natural, at most "
    "a filler word or two, numbers as English words, nothing that cannot be spoken. Reply with the instruction only."
)
ANSWER = (
    "Answer as a voice assistant: very briefly, in one to three spoken sentences, without lists, parentheses or "
    "symbols, numbers as English words. Reply with the answer only."
)
LONGEST = 29.0  # seconds of a question: the encoder hears 30


@dataclass(frozen=True)
class Settings:
    voices: tuple[str, ...]
    seed: int
    word_errors: float  # of what the recogniser may hear wrong
    rewriter: str | None = None
    answerer: str | None = None
    turns: int = 4  # of a dialogue, at most
    level: float = 0.0  # the answering voice's one note, in Hz; 0 for a free pitch
    units: str | None = None  # file
    mhubert: str | None = None  # folder
    kmeans: str | None = None  # file
    unit_digest: str | None = None  # of the file with the centroids

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Settings":
        unit_reader.check(args.units, args.mhubert, args.kmeans)
        centroids = args.units or args.kmeans
        try:
            digest = hashlib.sha256(centroids.read_bytes()).hexdigest()[:16] if centroids else None
        except OSError as exc:
            raise UnitsError(f"{centroids} cannot be read: {exc}") from exc
        units, mhubert, kmeans = (str(each) if each else None for each in (args.units, args.mhubert, args.kmeans))
        names = tuple(args.voices.split(","))
        by = (args.rewriter, args.answerer, args.turns, args.level)
        return cls(names, args.seed, args.word_errors, *by, units, mhubert, kmeans, digest)

    @property
    def unit_files(self) -> tuple[Path | None, Path | None, Path | None]:
        units, mhubert, kmeans = (Path(each) if each else None for each in (self.units, self.mhubert, self.kmeans))
        return units, mhubert, kmeans


class Dropped(Exception):
    """A turn cannot be used, and why."""


@dataclass
class Maker:
    """Everybody a row needs."""

    settings: Settings
    ask: dict[str, voices.Voice]
    answer: Callable[[str], np.ndarray]  # text → (S,) at 16 kHz
    listen: Callable[[np.ndarray], str]
    rewriter: Callable[[str, str], str] | None = None
    answerer: Callable[..., str] | None = None  # a Chat: system, user, history
    units: Reader | None = None

    @classmethod
    def real(cls, settings: Settings) -> "Maker":
        from omni.train.answers import AnsweringVoice
        from omni.train.recogniser import Recogniser

        torch.set_num_threads(1)  # a sum's last bit depends on it, and units on that
        speaker = AnsweringVoice(settings.level or None)
        rewriter, answerer = (Chat.named(each) if each else None for each in (settings.rewriter, settings.answerer))
        ask = {name: voices.make(name) for name in settings.voices}
        reader, listen = unit_reader.find(*settings.unit_files), Recogniser.fetched(1)
        return cls(settings, ask, lambda text: speaker(text).samples, listen, rewriter, answerer, reader)

    def make(self, number: int, source: Source, folder: Path) -> list[dict]:
        """Line `number`, made once: a row for every turn and, where one was left out, why ("dropped"), last."""
        kept = folder / "rows" / f"{number:07}.json"
        if kept.exists():
            return json.loads(kept.read_text())
        rows = self._make(number, source, folder)
        keep.text(kept, json.dumps(rows, ensure_ascii=False))
        return rows

    def _make(self, number: int, source: Source, folder: Path) -> list[dict]:
        voice = str(np.random.default_rng([self.settings.seed, number]).choice(self.settings.voices))
        rows: list[dict[str, Any]] = []
        for place, turn in enumerate(source.turns):
            earlier = [{key: row[key] for key in ("audio", "instruction", "response")} for row in rows]
            name = f"{number:07}-{place}"
            try:
                row = self._turn(name, turn, voice, number, earlier, folder)
            except Dropped as exc:  # what follows would lack its history
                return [*rows, {"dropped": str(exc), "after": len(source.turns) - place - 1}]
            origin = {"source": f"{source.file}:{source.line}", "licence": source.licence}
            rows.append({"id": name, **row, "voice": voice, **origin, "history": earlier})
        return rows

    def _turn(self, name: str, turn: Turn, voice: str, number: int, earlier: Sequence[dict], folder: Path) -> dict:
        instruction, response = self._texts(turn, earlier)
        # The same draws in every turn: a dialogue has one speaker at one speed, in one room.
        speaker, room = (np.random.default_rng([self.settings.seed, number, part]) for part in (1, 2))
        question, spoken = voices.room(self.ask[voice](instruction, speaker), room), self.answer(response)
        if len(question) > LONGEST * SAMPLE_RATE:
            raise Dropped("question too long")
        for text, sound in ((instruction, question), (response, spoken)):
            meant = words.words(text)
            if words.errors(words.words(self.listen(sound)), meant) > self.settings.word_errors * len(meant):
                raise Dropped("not heard back")
        units = {} if self.units is None else {"units": self._units(spoken, response)}
        names = {"audio": f"questions/{name}.flac", "answer_audio": f"answers/{name}.flac"}
        for path, sound in zip(names.values(), (question, spoken), strict=True):
            keep.whole(folder / path, partial(_write, samples=sound))
        about = {"instruction": instruction, "response": response, "rate": SAMPLE_RATE}
        times = {"seconds": len(question) / SAMPLE_RATE, "answer_seconds": len(spoken) / SAMPLE_RATE}
        return {**names, **about, **times, **units}

    def _texts(self, turn: Turn, earlier: Sequence[dict]) -> tuple[str, str]:
        """Question and answer as they are said. An answerer knows what was asked and answered before."""
        asked = self.rewriter(REWRITE, turn.instruction) if self.rewriter else turn.instruction
        history = [(each["instruction"], each["response"]) for each in earlier]
        answered = self.answerer(ANSWER, asked, history=history) if self.answerer else turn.response
        instruction, response = speakable(asked), speakable(answered)
        if instruction is None or response is None:
            raise Dropped("cannot be said")
        return instruction, response

    def _units(self, spoken: np.ndarray, text: str) -> list[int]:
        assert self.units is not None, "a reader was asked for"
        if len(spoken) > self.units.longest:
            raise Dropped("answer too long for its units")
        return merge(self.units(wav.from_pcm16(wav.to_pcm16(spoken)), text))[0]  # of the sound as it is kept


def _write(path: Path, samples: np.ndarray) -> None:
    soundfile.write(path, np.clip(samples, -1, 1), SAMPLE_RATE, format="FLAC", subtype="PCM_16")


_maker: Maker | None = None  # one a process


def _start(settings: Settings) -> None:
    global _maker
    _maker = Maker.real(settings)


def _work(number: int, source: Source, folder: Path) -> list[dict]:
    assert _maker is not None, "_start ran first"
    return _maker.make(number, source, folder)


def write(folder: Path, sources: Sequence[Source], settings: Settings, jobs: int, num_bad: int) -> list[dict]:
    """Make what is missing, then the manifest and its card. Returns the manifest's rows."""
    numbers = range(len(sources))
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(jobs, context, initializer=_start, initargs=(settings,)) as pool:
        made = pool.map(_work, numbers, sources, [folder] * len(sources), chunksize=4)
        rows = list(tqdm(made, total=len(sources), desc="speaking", disable=None))
    return finish(folder, rows, settings, num_bad, sum(source.num_cut for source in sources))


def finish(folder: Path, made: Sequence[list[dict]], settings: Settings, num_bad: int, num_cut: int = 0) -> list[dict]:
    rows = [row for each in made for row in each if "dropped" not in row]
    keep.text(folder / "manifest.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    keep.text(folder / "card.md", card(made, settings, num_bad, num_cut))
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--instructions", type=Path, nargs="+", required=True, help="JSON lines: an instruction "
                        "and its response, or a dialogue (messages, turns or UltraChat's data)")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--voices", default="hibari,joe,kokoro", help="that ask (default: %(default)s)")
    parser.add_argument("--rewriter", metavar="openai:URL#MODEL", help="rewrites instructions (default: by rule)")
    parser.add_argument("--answerer", metavar="openai:URL#MODEL", help="answers them (default: the given response)")
    parser.add_argument("--word-errors", type=float, default=0.3, help="the recogniser may make (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=4, help="of a dialogue, from its first (default: %(default)s)")
    parser.add_argument(
        "--units", type=Path, help="units.safetensors of `omni train units`: give every answer its units"
    )
    parser.add_argument("--mhubert", type=Path, help="folder of a HubertModel: give every answer mHuBERT's units")
    parser.add_argument("--kmeans", type=Path, help="and its centroids: .npy or .safetensors")
    parser.add_argument("--level", type=float, default=0.0, help="the answering voice's one note, in Hz, as the units "
                        "were learnt with (default: a free pitch)")  # fmt: skip
    parser.add_argument("--licence", action="append", default=[], metavar="FILE=TEXT", help="an input's, for the card")
    parser.add_argument("--limit", type=int, help="take only so many lines")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--on-bad", choices=manifest.ON_BAD, default="refuse", help="bad lines (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> int:
    try:
        settings = Settings.of(args)
        unit_reader.find(*settings.unit_files)  # what is wrong with it is said before anything is made
        licences = dict(_pair(each) for each in args.licence)
        need_answers = args.answerer is None
        sources, num_bad = dialogues.read(args.instructions, args.on_bad, need_answers, args.turns, licences)
        _same_settings(args.output, settings)
        rows = write(args.output, sources[: args.limit], settings, args.jobs, num_bad)
    except (ManifestError, ChatError, UnitsError) as exc:
        print(f"omni train data: {exc}", file=sys.stderr)
        return 2
    print((args.output / "card.md").read_text())
    return 0 if rows else 1


def _pair(given: str) -> tuple[str, str]:
    file, equals, text = given.partition("=")
    if not (file and equals and text):
        raise ManifestError(f"--licence {given!r} is not FILE=TEXT, as in alpaca.jsonl=CC-BY-NC-4.0.")
    return Path(file).name, text


def _same_settings(folder: Path, settings: Settings) -> None:
    """Rows made with other settings are not mixed with these."""
    path, ours = folder / "settings.json", json.dumps(asdict(settings))
    if path.exists() and path.read_text() != ours:
        raise ManifestError(f"{folder} holds rows made with {path.read_text()}; take another folder.")
    keep.text(path, ours)
