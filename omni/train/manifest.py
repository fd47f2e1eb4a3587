"""A manifest: one JSON object a line, audio named relative to it. What is wrong in it is named with its line.

    questions, bad = read(path, parse, on_bad="skip")

`parse(row, folder)` makes something of a row, or raises BadRow. With "refuse" (the default) a bad row refuses the whole
manifest; with "skip" it is left out, logged and counted. Nothing is repaired or cut silently.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import soundfile

from omni.audio.wav import MAX_RATE, MIN_RATE

logger = logging.getLogger(__name__)
ON_BAD = ("refuse", "skip")
SHOWN = 5  # bad rows named in an error
Parsed = TypeVar("Parsed")


class ManifestError(ValueError):
    """A manifest cannot be read, is empty, or has rows that are refused."""


class BadRow(ValueError):
    """A row that cannot be used, and why."""


@dataclass(frozen=True)
class Bad:
    line: int
    problem: str


def read(
    path: Path, parse: Callable[[dict, Path], Parsed], on_bad: str = "refuse", unique: str | None = "id"
) -> tuple[list[Parsed], list[Bad]]:
    """Rows in order, and what is wrong with the others. Raises ManifestError; `unique` is a key no two rows share."""
    assert on_bad in ON_BAD, f"on_bad is {on_bad!r}; one of {ON_BAD}"
    rows: list[Parsed] = []
    bad: list[Bad] = []
    seen: dict[object, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = _object(line)
            if unique is not None and row.get(unique) is not None:
                first = seen.setdefault(row[unique], number)
                if first != number:
                    raise BadRow(f"{unique} {row[unique]!r} is line {first}'s.")
            rows.append(parse(row, path.parent))
        except BadRow as exc:
            bad.append(Bad(number, str(exc)))
            if on_bad == "skip":
                logger.warning("%s, line %d: %s Skipped.", path, number, exc)
    if bad and on_bad == "refuse":
        raise ManifestError(_refusal(path, bad))
    if not rows:
        raise ManifestError(f"{path} holds no usable rows ({len(bad)} bad).")
    return rows, bad


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise ManifestError(f"{path} cannot be read: {exc}") from exc


def _object(line: str) -> dict:
    try:
        row = json.loads(line)
    except ValueError as exc:
        raise BadRow(f"no JSON: {exc}.") from exc
    if not isinstance(row, dict):
        raise BadRow(f"{line[:40]!r} is no JSON object.")
    return row


def _refusal(path: Path, bad: list[Bad]) -> str:
    shown = "\n".join(f"{path}, line {each.line}: {each.problem}" for each in bad[:SHOWN])
    more = f"\n… and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    return f"{shown}{more}\n{len(bad)} bad rows; --on-bad skip leaves them out."


# What rows are made of


def text(row: dict, key: str) -> str:
    found = row.get(key)
    if not isinstance(found, str) or not found.strip():
        raise BadRow(f"{key} is {'missing' if found is None else 'empty' if found == '' else repr(found)[:40]}.")
    return found


def audio(row: dict, key: str, folder: Path, rate: int | None = None) -> Path:
    """The file, whose header was looked at. `rate` (or the row's own) is what it must have, in Hz."""
    path = folder / text(row, key)
    if not path.is_file():
        raise BadRow(f"{path} is not there.")
    wanted = rate if rate is not None else row.get("rate")
    try:
        info = soundfile.info(str(path))
    except soundfile.LibsndfileError as exc:
        if wanted is not None or path.stat().st_size == 0 or path.suffix.lower() in (".wav", ".flac", ".ogg"):
            raise BadRow(f"{path} is no audio: {exc}") from exc
        return path  # a format that ffmpeg will read
    if wanted is not None and info.samplerate != wanted:
        raise BadRow(f"{path} has a rate of {info.samplerate} Hz, not {wanted} Hz.")
    if not MIN_RATE <= info.samplerate <= MAX_RATE:
        raise BadRow(f"{path} has a rate of {info.samplerate} Hz, outside {MIN_RATE} … {MAX_RATE} Hz.")
    if info.frames == 0:
        raise BadRow(f"{path} has no samples.")
    return path


def objects(row: dict, key: str) -> list[dict]:
    """A list of objects; none where the key is missing."""
    found = [] if row.get(key) is None else row[key]
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise BadRow(f"{key} is no list of JSON objects.")
    return found


def units(row: dict, key: str, num_units: int) -> list[int]:
    found = row.get(key)
    if not isinstance(found, list) or not found:
        raise BadRow(f"{key} holds no units.")
    for place, unit in enumerate(found):
        if not isinstance(unit, int) or isinstance(unit, bool) or not 0 <= unit < num_units:
            raise BadRow(f"{key}[{place}] is {unit!r}, none of the units 0 … {num_units - 1}.")
    return found
