"""Held-out questions, and whether an answer fits one. A scorer is any function (Question, answer) → bool or Score.

`fits` decides by words alone, so that it is the same on every machine; `--scorer openai:URL#MODEL` asks a language
model (judge.py), `--scorer module:function` names any other.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from omni.train import manifest
from omni.train.manifest import Bad, BadRow, ManifestError
from omni.train.words import contains, f1, normalise, words

CLOSE = 0.8  # word F1 above which an answer says the same


@dataclass(frozen=True)
class Earlier:
    """A question that was asked before, in the same conversation, and what was answered: in a manifest, may be None."""

    audio: Path
    instruction: str
    response: str | None = None


@dataclass(frozen=True)
class Question:
    """A spoken question, what was asked, and what a fitting answer says."""

    id: str
    audio: Path
    instruction: str
    kind: str  # "chitchat", "factual" …
    accept: tuple[str, ...] = ()  # answers that fit
    fact: str | None = None  # words a fitting answer must contain
    voice: str = ""
    split: str = ""  # "development": looked at while training; "test": not
    history: tuple[Earlier, ...] = ()  # for a scorer with the answers that were given


FITTING = 4.0  # points from which on an answer fits


@dataclass(frozen=True)
class Score:
    """1 to 5 points, the paper's scale; true where the answer fits."""

    points: float

    def __bool__(self) -> bool:
        return self.points >= FITTING


Scorer = Callable[[Question, str], "bool | Score"]


def read_manifest(path: Path) -> list[Question]:
    """Every question; a bad row refuses them all (ManifestError)."""
    return read_questions(path)[0]


def read_questions(path: Path, on_bad: str = "refuse", answers_known: bool = True) -> tuple[list[Question], list[Bad]]:
    """Questions, and the rows that were skipped: see manifest.py.

    `answers_known`: every row says what fits (accept, fact or response). The local scorer needs it; a judge does not.
    """
    return manifest.read(path, partial(_question, answers_known=answers_known), on_bad)


def _question(row: dict, folder: Path, answers_known: bool) -> Question:
    accept = row.get("accept") or ([row["response"]] if row.get("response") else [])
    if not isinstance(accept, list) or not all(isinstance(each, str) for each in accept):
        raise BadRow("accept is no list of texts.")
    file = manifest.audio(row, "audio", folder)
    if answers_known and not accept and not row.get("fact"):
        raise BadRow("neither accept nor fact says what fits.")
    return Question(
        manifest.text(row, "id") if "id" in row else file.stem,
        file,
        manifest.text(row, "instruction"),
        manifest.text(row, "kind") if "kind" in row else "question",
        tuple(accept),
        manifest.text(row, "fact") if row.get("fact") else None,
        row.get("voice") or "",
        row.get("split") or "",
        tuple(_earlier(each, place, folder) for place, each in enumerate(manifest.objects(row, "history"))),
    )


def _earlier(row: dict, place: int, folder: Path) -> Earlier:
    try:
        response = None if row.get("response") is None else manifest.text(row, "response")
        return Earlier(manifest.audio(row, "audio", folder), manifest.text(row, "instruction"), response)
    except BadRow as exc:
        raise BadRow(f"history[{place}]: {exc}") from exc


def fits(question: Question, answer: str) -> bool:
    """A fact must be named; without one, the answer must say what one of the accepted answers says."""
    if question.fact:
        return contains(words(answer), words(question.fact))
    said = words(answer)
    return any(normalise(answer) == normalise(other) or f1(said, words(other)) > CLOSE for other in question.accept)


def find_scorer(name: str) -> Scorer:
    """ "fits", "openai:URL#MODEL", or "package.module:function" """
    if name == "fits":
        return fits
    if name.startswith("openai:"):
        from omni.train.chat import Chat, ChatError
        from omni.train.judge import Judge

        try:
            return Judge(Chat.named(name, json_reply=True))
        except ChatError as exc:
            raise ManifestError(str(exc)) from exc
    module, colon, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as exc:
        raise ManifestError(f"scorer {name!r} is neither 'fits', openai:URL#MODEL nor module:function: {exc}") from exc
    assert colon and callable(found), f"{name} is no function"
    return found
