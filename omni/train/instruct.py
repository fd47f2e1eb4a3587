"""Instructions in writing → spoken instructions with spoken answers, as InstructS2S was made (arXiv 2409.06666, 3).

    omni train data --instructions alpaca.jsonl --output runs/data --voices hibari,joe --jobs 2
    omni train data --instructions alpaca.jsonl --output data --rewriter openai:http://127.0.0.1:8080/v1#llama

A line in has an instruction and a response (or answer). Both are rewritten to be said, by rule (speakable.py) or by a
language model; the question is spoken by one of many voices, with its speed, room and noise, the answer by one voice.
A recogniser hears both; what it does not hear back is left out. Out come manifest.jsonl, questions/, answers/ and
card.md. A row follows from the seed, its line and the voices alone, whoever makes it, and is kept at once: a killed run
goes on where it was.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from omni.audio.wav import SAMPLE_RATE
from omni.train import keep, manifest, voices, words
from omni.train.chat import Chat, ChatError
from omni.train.manifest import BadRow, ManifestError
from omni.train.speakable import speakable

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


@dataclass(frozen=True)
class Source:
    file: str
    line: int
    instruction: str
    response: str


@dataclass
class Maker:
    """Everybody a row needs."""

    settings: Settings
    ask: dict[str, voices.Voice]
    answer: Callable[[str], np.ndarray]  # text → (S,) at 16 kHz
    listen: Callable[[np.ndarray], str]
    rewriter: Callable[[str, str], str] | None = None
    answerer: Callable[[str, str], str] | None = None

    @classmethod
    def real(cls, settings: Settings) -> "Maker":
        from omni.train.answers import AnsweringVoice
        from omni.train.recogniser import Recogniser

        speaker = AnsweringVoice()
        rewriter, answerer = (Chat.named(each) if each else None for each in (settings.rewriter, settings.answerer))
        ask = {name: voices.make(name) for name in settings.voices}
        return cls(settings, ask, lambda text: speaker(text).samples, Recogniser.fetched(1), rewriter, answerer)

    def make(self, number: int, source: Source, folder: Path) -> dict:
        """Row `number`, made once: its line of the manifest, or why it was left out ("dropped")."""
        kept = folder / "rows" / f"{number:07}.json"
        if kept.exists():
            return json.loads(kept.read_text())
        row = self._make(number, source, folder)
        keep.text(kept, json.dumps(row, ensure_ascii=False))
        return row

    def _make(self, number: int, source: Source, folder: Path) -> dict:
        draw = np.random.default_rng([self.settings.seed, number])
        asked = self.rewriter(REWRITE, source.instruction) if self.rewriter else source.instruction
        answered = self.answerer(ANSWER, asked) if self.answerer else source.response
        instruction, response = speakable(asked), speakable(answered)
        if instruction is None or response is None:
            return {"dropped": "cannot be said"}
        voice = str(draw.choice(self.settings.voices))
        clean = self.ask[voice](instruction, draw)
        question, spoken = voices.room(clean, draw), self.answer(response)
        if len(question) > LONGEST * SAMPLE_RATE:
            return {"dropped": "question too long"}
        for text, sound in ((instruction, question), (response, spoken)):
            meant = words.words(text)
            if words.errors(words.words(self.listen(sound)), meant) > self.settings.word_errors * len(meant):
                return {"dropped": "not heard back"}
        names = {"audio": f"questions/{number:07}.flac", "answer_audio": f"answers/{number:07}.flac"}
        for name, sound in zip(names.values(), (question, spoken), strict=True):
            keep.whole(folder / name, partial(_write, samples=sound))
        about = {"instruction": instruction, "response": response, "voice": voice, "rate": SAMPLE_RATE}
        times = {"seconds": len(question) / SAMPLE_RATE, "answer_seconds": len(spoken) / SAMPLE_RATE}
        return {"id": f"{number:07}", **names, **about, **times, "source": f"{source.file}:{source.line}"}


def _write(path: Path, samples: np.ndarray) -> None:
    soundfile.write(path, np.clip(samples, -1, 1), SAMPLE_RATE, format="FLAC", subtype="PCM_16")


_maker: Maker | None = None  # one a process


def _start(settings: Settings) -> None:
    global _maker
    _maker = Maker.real(settings)


def _work(number: int, source: Source, folder: Path) -> dict:
    assert _maker is not None, "_start ran first"
    return _maker.make(number, source, folder)


def read_sources(files: Sequence[Path], on_bad: str, need_response: bool) -> tuple[list[Source], int]:
    """All lines of all files in order, and how many bad ones were skipped."""
    sources: list[Source] = []
    num_bad = 0
    for file in files:

        def parse(row: dict, folder: Path, file: Path = file) -> Source:
            text = manifest.text(row, "instruction")
            more = row.get("input") or ""
            response = row.get("response") or row.get("output") or row.get("answer") or ""
            if need_response and not str(response).strip():
                raise BadRow("neither response nor answer says what to answer (or name an --answerer).")
            return Source(file.name, 0, f"{text} {more}".strip(), str(response))

        found, bad = manifest.read(file, parse, on_bad, unique=None)
        num_bad += len(bad)
        skipped = {each.line for each in bad}
        lines = (i for i, line in enumerate(file.read_text().split("\n"), 1) if line.strip() and i not in skipped)
        sources += [Source(s.file, n, s.instruction, s.response) for s, n in zip(found, lines, strict=True)]
    return sources, num_bad


def write(folder: Path, sources: Sequence[Source], settings: Settings, jobs: int, num_bad: int) -> list[dict]:
    """Make what is missing, then the manifest and its card. Returns the manifest's rows."""
    numbers = range(len(sources))
    with ProcessPoolExecutor(jobs, initializer=_start, initargs=(settings,)) as pool:
        made = pool.map(_work, numbers, sources, [folder] * len(sources), chunksize=4)
        rows = list(tqdm(made, total=len(sources), desc="speaking", disable=None))
    return finish(folder, rows, settings, num_bad)


def finish(folder: Path, made: Sequence[dict], settings: Settings, num_bad: int) -> list[dict]:
    rows = [row for row in made if "dropped" not in row]
    keep.text(folder / "manifest.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    keep.text(folder / "card.md", card(made, rows, settings, num_bad))
    return rows


def card(made: Sequence[dict], rows: Sequence[dict], settings: Settings, num_bad: int) -> str:
    dropped = Counter(row["dropped"] for row in made if "dropped" in row)
    files = Counter(row["source"].rpartition(":")[0] for row in rows)
    hours = [sum(row[key] for row in rows) / 3600 for key in ("seconds", "answer_seconds")]
    lines = [
        "# Spoken instructions and answers",
        "",
        f"- {len(rows)} rows of {len(made)}; {hours[0]:.3f} h of questions, {hours[1]:.3f} h of answers, 16 kHz FLAC",
        *(f"- left out, {reason}: {count}" for reason, count in sorted(dropped.items())),
        f"- bad lines of the input skipped: {num_bad}",
        f"- seed {settings.seed}; word errors allowed: {settings.word_errors:.0%} of each text (Moonshine tiny)",
        f"- rewritten by {settings.rewriter or 'rule'}, answered by {settings.answerer or 'the input, by rule'}",
        *(f"- voice {name}: {count}" for name, count in sorted(Counter(row["voice"] for row in rows).items())),
        *(f"- from {name}: {count}" for name, count in sorted(files.items())),
        "",
        "Licences: texts as their files say; voices as docs/licences.md lists them.",
    ]
    return "\n".join(lines) + "\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--instructions", type=Path, nargs="+", required=True, help="JSON lines: instruction, response")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--voices", default="hibari,joe,kokoro", help="that ask (default: %(default)s)")
    parser.add_argument("--rewriter", metavar="openai:URL#MODEL", help="rewrites instructions (default: by rule)")
    parser.add_argument("--answerer", metavar="openai:URL#MODEL", help="answers them (default: the given response)")
    parser.add_argument("--word-errors", type=float, default=0.3, help="the recogniser may make (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="take only so many lines")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--on-bad", choices=manifest.ON_BAD, default="refuse", help="bad lines (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> int:
    settings = Settings(tuple(args.voices.split(",")), args.seed, args.word_errors, args.rewriter, args.answerer)
    try:
        sources, num_bad = read_sources(args.instructions, args.on_bad, need_response=args.answerer is None)
        _same_settings(args.output, settings)
        rows = write(args.output, sources[: args.limit], settings, args.jobs, num_bad)
    except (ManifestError, ChatError) as exc:
        print(f"omni train data: {exc}", file=sys.stderr)
        return 2
    print((args.output / "card.md").read_text())
    return 0 if rows else 1


def _same_settings(folder: Path, settings: Settings) -> None:
    """Rows made with other settings are not mixed with these."""
    path, ours = folder / "settings.json", json.dumps(vars(settings))
    if path.exists() and path.read_text() != ours:
        raise ManifestError(f"{folder} holds rows made with {path.read_text()}; take another folder.")
    keep.text(path, ours)
