"""Written instructions and dialogues → what is said in them, turn by turn. Any JSON lines; knows nothing of sound.

    sources, num_bad = read([Path("ultrachat.jsonl")], on_bad="skip", need_answers=True, num_turns=4)

A line is one of

    {"instruction": "…", "input": "…", "response": "…"}               # Alpaca's; output and answer are responses too
    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", …}, …]}
    {"data": ["…", "…", …]}                                           # UltraChat's; user first; turns is the same
    {"turns": [{"instruction": "…", "response": "…"}, …]}

and may name its licence (or license). What is no such thing is named with its line.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omni.train import manifest
from omni.train.manifest import BadRow

RESPONSES = ("response", "output", "answer")


@dataclass(frozen=True)
class Turn:
    instruction: str
    response: str  # "" where an answerer is to answer


@dataclass(frozen=True)
class Source:
    """One line: a dialogue of one turn or several."""

    file: str
    line: int
    turns: tuple[Turn, ...]
    licence: str = ""
    num_cut: int = 0  # turns after the first num_turns, left out


def read(
    files: Sequence[Path], on_bad: str, need_answers: bool, num_turns: int, licences: dict[str, str] | None = None
) -> tuple[list[Source], int]:
    """All lines of all files in order, and how many bad ones were skipped. `licences` are files', by name."""
    sources: list[Source] = []
    num_bad = 0
    for file in files:
        licence = (licences or {}).get(file.name, "")

        def parse(row: dict, folder: Path, file: Path = file, licence: str = licence) -> Source:
            turns = turns_of(row)
            if need_answers and not all(turn.response for turn in turns):
                raise BadRow("a turn has no response (or output, or answer): give one, or name an --answerer.")
            own = row.get("licence") or row.get("license") or licence
            return Source(file.name, 0, tuple(turns[:num_turns]), str(own), max(0, len(turns) - num_turns))

        found, bad = manifest.read(file, parse, on_bad, unique=None)
        num_bad += len(bad)
        skipped = {each.line for each in bad}
        lines = (i for i, line in enumerate(file.read_text().split("\n"), 1) if line.strip() and i not in skipped)
        sources += [replace(source, line=line) for source, line in zip(found, lines, strict=True)]
    return sources, num_bad


def turns_of(row: dict) -> list[Turn]:
    if row.get("messages"):
        return _alternating(_contents(row))
    for key in ("turns", "data"):
        said = row.get(key)
        if said and isinstance(said, list) and all(isinstance(each, str) for each in said):
            return _alternating(said)
        if said:
            return [_turn(each) for each in manifest.objects(row, key)]
    return [_turn(row)]


def _turn(row: dict) -> Turn:
    """As Alpaca has it, with what the instruction is about."""
    text = manifest.text(row, "instruction")
    more = row.get("input") or ""
    response = next((row[key] for key in RESPONSES if row.get(key)), "")
    return Turn(f"{text} {more}".strip(), str(response).strip())


def _contents(row: dict) -> list[str]:
    messages = manifest.objects(row, "messages")
    for place, message in enumerate(messages):
        expected = ("user", "assistant")[place % 2]
        if message.get("role") != expected:
            raise BadRow(
                f"messages[{place}] is of {message.get('role')!r}, not of the {expected}: a dialogue begins with the "
                "user, and both take turns (leave a system message out)."
            )
    return [message.get("content") or "" for message in messages]


def _alternating(said: list[str]) -> list[Turn]:
    """The user's and the assistant's words in turn; a last question may wait for its answer."""
    if not all(isinstance(each, str) and each.strip() for each in said):
        raise BadRow("something that was said is empty.")
    answers = [*said[1::2], *([""] if len(said) % 2 else [])]
    return [Turn(asked.strip(), answer.strip()) for asked, answer in zip(said[::2], answers, strict=True)]
