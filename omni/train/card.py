"""A data card: what a folder of spoken dialogues holds, how it was made, and on what terms. Counts what it is given.

text = card(made, settings, num_bad=2, num_cut=3)
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from omni.train import voices

if TYPE_CHECKING:
    from omni.train.instruct import Settings


def card(made: Sequence[list[dict]], settings: "Settings", num_bad: int, num_cut: int) -> str:
    """Of all dialogues' rows, those that were left out ("dropped") among them; `num_cut` turns were never tried."""
    everything = [row for rows in made for row in rows]
    rows = [row for row in everything if "dropped" not in row]
    dialogues = Counter(len([row for row in each if "dropped" not in row]) for each in made)
    dropped = Counter(row["dropped"] for row in everything if "dropped" in row)
    after = sum(row["after"] for row in everything if "dropped" in row)
    hours = [sum(row[key] for row in rows) / 3600 for key in ("seconds", "answer_seconds")]
    lines = [
        "# Spoken instructions and answers",
        "",
        f"- {len(rows)} rows, a turn each, of {len(made)} lines of the input; {hours[0]:.3f} h of questions, "
        f"{hours[1]:.3f} h of answers, 16 kHz FLAC",
        *(f"- dialogues of {turns} turn{'s' * (turns > 1)}: {n}" for turns, n in sorted(dialogues.items()) if turns),
        *(f"- left out, {reason}: {count}" for reason, count in sorted(dropped.items())),
        f"- left out, turns after one of these: {after}; past the first {settings.turns}: {num_cut}",
        f"- bad lines of the input skipped: {num_bad}",
        f"- seed {settings.seed}; word errors allowed: {settings.word_errors:.0%} of each text (Moonshine tiny)",
        f"- rewritten by {settings.rewriter or 'rule'}, answered by {settings.answerer or 'the input, by rule'}",
        f"- the answering voice speaks {f'on one note of {settings.level:g} Hz' if settings.level else 'freely'}",
        _units(rows, settings),
        "",
        "## Licences",
        "",
        *_texts(rows),
        *_voices(rows),
        f"- answers: {voices.LICENCES['hibari']}",
        "",
        "What was made of a text stays under the text's licence; docs/licences.md has the voices' origins.",
    ]
    return "\n".join(lines) + "\n"


def _units(rows: Sequence[dict], settings: "Settings") -> str:
    if settings.unit_digest is None:
        return "- no units: stage 2 needs them (--units, or --mhubert and --kmeans)"
    found = [unit for row in rows for unit in row["units"]]
    rate = len(found) / max(sum(row["answer_seconds"] for row in rows), 1e-9)
    source = settings.units or f"{settings.mhubert} with {settings.kmeans}"
    return (
        f"- units of the answers: {len(found)} merged, {rate:.1f} a second, {len(set(found))} different ones; from "
        f"{source}, sha256 {settings.unit_digest}"
    )


def _texts(rows: Sequence[dict]) -> list[str]:
    found = Counter((row["source"].rpartition(":")[0], row["licence"]) for row in rows)
    return [
        f"- from {file}: {count} rows, {licence or 'licence not given (--licence FILE=TEXT)'}"
        for (file, licence), count in sorted(found.items())
    ]


def _voices(rows: Sequence[dict]) -> list[str]:
    found = Counter(row["voice"] for row in rows)
    return [
        f"- voice {name}: {count} rows, {voices.LICENCES.get(name.partition('/')[0], 'licence unknown')}"
        for name, count in sorted(found.items())
    ]
