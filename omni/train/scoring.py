"""Held-out questions, and whether an answer fits one. A scorer is any function (Question, answer) → bool.

`fits` decides by words alone, so that it is the same on every machine; `--scorer module:function` names another one.
"""

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omni.train.words import contains, f1, normalise, words

CLOSE = 0.8  # word F1 above which an answer says the same


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


Scorer = Callable[[Question, str], bool]


class ManifestError(ValueError):
    """A manifest cannot be read, or names audio that is not there."""


def read_manifest(path: Path) -> list[Question]:
    """One JSON object a line; audio is relative to the manifest."""
    questions = []
    try:
        lines = path.read_text().splitlines()
    except OSError as exc:
        raise ManifestError(f"{path} cannot be read: {exc}") from exc
    for number, line in enumerate(filter(str.strip, lines), start=1):
        try:
            raw = json.loads(line)
            question = Question(
                raw["id"],
                path.parent / raw["audio"],
                raw["instruction"],
                raw["kind"],
                tuple(raw.get("accept") or ()),
                raw.get("fact"),
                raw.get("voice") or "",
            )
        except (ValueError, KeyError, TypeError) as exc:
            raise ManifestError(f"{path}, line {number}: {exc!r}") from exc
        if not question.audio.is_file():
            raise ManifestError(f"{path}, line {number}: {question.audio} is not there.")
        if not question.accept and not question.fact:
            raise ManifestError(f"{path}, line {number}: neither accept nor fact says what fits.")
        questions.append(question)
    if not questions:
        raise ManifestError(f"{path} holds no questions.")
    return questions


def fits(question: Question, answer: str) -> bool:
    """A fact must be named; without one, the answer must say what one of the accepted answers says."""
    if question.fact:
        return contains(words(answer), words(question.fact))
    said = words(answer)
    return any(normalise(answer) == normalise(other) or f1(said, words(other)) > CLOSE for other in question.accept)


def find_scorer(name: str) -> Scorer:
    """ "fits", or "package.module:function" """
    if name == "fits":
        return fits
    module, colon, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as exc:
        raise ManifestError(f"scorer {name!r} is neither 'fits' nor module:function: {exc}") from exc
    assert colon and callable(found), f"{name} is no function"
    return found
