"""Answers → the numbers of an evaluation, as JSON and as a table. Knows no model."""

import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omni.train import words

BEGIN, END = "<!-- omni evaluate: begin -->", "<!-- omni evaluate: end -->"
EXAMPLES = 12  # answers shown in the table


@dataclass(frozen=True)
class Before:
    """What was asked aloud earlier in a dialogue, and what was answered."""

    asked: str
    answered: str


@dataclass(frozen=True)
class Answer:
    """One question asked aloud, and the same question written."""

    id: str
    kind: str
    voice: str
    asked: str
    text: str  # what the model answered
    heard: str  # what the recogniser heard of the spoken answer
    written: str | None  # the answer to the same question as text; None where it was not asked
    fitting: bool
    fitting_heard: bool
    fitting_written: bool | None
    num_tokens: int
    num_units: int
    answer_seconds: float  # of speech
    compute_seconds: float  # from samples to samples
    mos: float | None = None  # predicted; None for clips too short to rate, and where nobody rated
    points: float | None = None  # 1 to 5 of the text, where the scorer gives points
    points_heard: float | None = None
    points_written: float | None = None
    before: tuple[Before, ...] = ()

    @property
    def turns(self) -> int:
        """Of the conversation that ended with this answer."""
        return len(self.before) + 1


@dataclass(frozen=True)
class Recording:
    """A recording without a known answer: what it says, and what was answered; or why it was not."""

    file: str
    seconds: float
    question: str = ""
    answer: str = ""
    heard: str = ""
    error: str = ""


def summary(answers: Sequence[Answer]) -> dict:
    """What the answers come to. Shares are of all questions; word errors are counted over all words of all answers."""
    spoken = [answer for answer in answers if answer.answer_seconds > 0]
    asked_twice = [answer for answer in answers if answer.fitting_written is not None]
    written = share(bool(answer.fitting_written) for answer in asked_twice)
    aloud = share(answer.fitting for answer in asked_twice)
    seconds = sum(answer.answer_seconds for answer in spoken)
    return {
        "questions": len(answers),
        "fitting": share(answer.fitting for answer in answers),
        "fitting_heard": share(answer.fitting_heard for answer in answers),
        "fitting_text": written,
        "voice_over_text": None if aloud is None or written is None else aloud - written,
        "fitting_by_kind": by(answers, lambda answer: answer.kind),
        "fitting_by_voice": by(answers, lambda answer: answer.voice),
        "fitting_by_turns": by(answers, lambda answer: answer.turns),
        "asr_wer": error_rate(answers, words.words),
        "asr_cer": error_rate(answers, lambda text: list(words.normalise(text).replace(" ", ""))),
        "mos": mean(answer.mos for answer in answers),
        "mos_clips": sum(answer.mos is not None for answer in answers),
        "points": mean(answer.points for answer in answers),
        "points_heard": mean(answer.points_heard for answer in answers),
        "points_text": mean(answer.points_written for answer in answers),
        "answers_without_sound": len(answers) - len(spoken),
        "words_per_second": ratio(sum(len(words.words(answer.text)) for answer in spoken), seconds),
        "real_time_factor": ratio(sum(answer.compute_seconds for answer in spoken), seconds),
        "seconds_per_answer": ratio(seconds, len(spoken)),
    }


def share(hits: Iterable[bool]) -> float | None:
    found = list(hits)
    return ratio(sum(found), len(found))


def ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return ratio(sum(known), len(known))


def by(answers: Sequence[Answer], key: Callable[[Answer], Any]) -> dict[str, float | None]:
    names = sorted({key(answer) for answer in answers})
    return {str(name): share(answer.fitting for answer in answers if key(answer) == name) for name in names}


def error_rate(answers: Sequence[Answer], split: Callable[[str], list[str]]) -> float | None:
    """Edits between what was heard and what was meant to be said, per word (or letter) that was meant."""
    pairs = [(split(answer.heard), split(answer.text)) for answer in answers]
    return ratio(sum(words.errors(heard, meant) for heard, meant in pairs), sum(len(meant) for _, meant in pairs))


def as_json(result: dict, answers: Sequence[Answer], recordings: Sequence[Recording]) -> dict:
    return result | {"answers": [asdict(each) for each in answers], "recordings": [asdict(each) for each in recordings]}


def table(result: dict, answers: Sequence[Answer], recordings: Sequence[Recording], against: dict | None = None) -> str:
    """Markdown between two marks, so that the next run takes its place. `against` is another checkpoint's result."""
    parts = [
        BEGIN,
        f"Checkpoint `{result['model']}`. Measured with `{result['command']}` on {result['hardware']} in "
        f"{result['minutes']:.1f} minutes, seed {result['seed']}. Scorer: `{result['scorer']}`. "
        "Recogniser: Moonshine tiny. MOS: predicted by DistillMOS.",
    ]
    if against is None:
        parts.append(_markdown(("measure", "value"), _rows(result)))
    else:
        theirs = dict(_rows(against))
        rows = [(name, value, theirs.get(name, "–"), _interval(result, name)) for name, value in _rows(result)]
        head = ("measure", f"`{result['model']}`", f"`{against['model']}`", "difference (95 %)")
        parts.append(_markdown(head, rows))
    for each in filter(None, (result, against)):
        if each.get("latency"):
            parts += [f"First sound by Ω, `{each['model']}`, {each['latency'][0]['answers']} questions:", _omegas(each)]
    parts += _shown(answers)
    if recordings:
        parts += [
            "Human recordings (the question is what the recogniser heard):",
            _markdown(
                ("file", "seconds", "question", "answered", "heard"),
                [
                    (each.file, f"{each.seconds:.1f}", each.question, each.answer or f"*{each.error}*", each.heard)
                    for each in recordings
                ],
            ),
        ]
    return "\n\n".join([*parts, END])


def _rows(result: dict) -> list[tuple[str, str]]:
    mos = "not measured" if result["mos"] is None else f"{result['mos']:.2f} ({result['mos_clips']} clips)"
    rows = [
        ("questions asked aloud (unseen phrasings, unseen voices)", f"{result['questions']}"),
        ("fitting answers", _percent(result["fitting"])),
        *((f"· {kind}", _percent(value)) for kind, value in result["fitting_by_kind"].items()),
        *((f"· asked by {voice}", _percent(value)) for voice, value in result["fitting_by_voice"].items()),
        *_by_turns(result["fitting_by_turns"]),
        ("fitting answers, by what the recogniser heard", _percent(result["fitting_heard"])),
        ("the same questions as text", _percent(result["fitting_text"])),
        ("voice over text", _percent(result["voice_over_text"], signed=True)),
        ("word error rate of the spoken answer", _percent(result["asr_wer"])),
        ("character error rate", _percent(result["asr_cer"])),
        ("words per second", _number(result["words_per_second"])),
        ("seconds of speech an answer", _number(result["seconds_per_answer"])),
        ("real-time factor (compute / speech)", _number(result["real_time_factor"])),
        ("answers without sound", f"{result['answers_without_sound']}"),
        ("MOS", mos),
    ]
    if result["points"] is not None:
        rows += [
            ("points of 5, text answered to voice (S2TIF)", _number(result["points"])),
            ("points of 5, speech answered to voice (S2SIF)", _number(result["points_heard"])),
            ("points of 5, text answered to text", _number(result["points_text"])),
        ]
    if result.get("bad_rows"):
        rows.append(("rows of the manifest skipped as bad", f"{len(result['bad_rows'])}"))
    return rows


def _by_turns(shares: dict[str, float | None]) -> list[tuple[str, str]]:
    """Nothing where every conversation is one question."""
    if not set(shares) - {"1"}:
        return []
    return [(f"· in turn {turns}", _percent(value)) for turns, value in shares.items()]


def _shown(answers: Sequence[Answer]) -> list[str]:
    """The column of what went before is there where something did."""
    examples = answers[:EXAMPLES]
    head = ["asked aloud", "answered", "heard", "fits"]
    rows = [[each.asked, each.text, each.heard, "yes" if each.fitting else "no"] for each in examples]
    if any(each.before for each in examples):
        earlier = [" ".join(f"{each.asked} – {each.answered}" for each in answer.before) for answer in examples]
        head, rows = ["before", *head], [[said, *row] for said, row in zip(earlier, rows, strict=True)]
    return [f"The first {len(examples)} answers:", _markdown(head, rows)]


DIFFERENCES = {  # a row of the table → the measure whose difference was resampled
    "fitting answers": "fitting",
    "fitting answers, by what the recogniser heard": "fitting_heard",
    "the same questions as text": "fitting_text",
    "word error rate of the spoken answer": "asr_wer",
    "MOS": "mos",
}


def _interval(result: dict, row: str) -> str:
    found = result["difference"].get(DIFFERENCES.get(row, ""))
    if found is None:
        return ""
    show = _number if row == "MOS" else _percent
    return f"{show(found['value'])} ({show(found['low'])} … {show(found['high'])})"


def _omegas(result: dict) -> str:
    head = ("Ω", "LLM ms", "vocoder ms", "total ms", "median", "WER", "MOS", "words/s", "same sound as offline")
    rows = [
        (f"{row['omega']}", *(f"{row[key]:.0f}" for key in ("llm_ms", "vocoder_ms", "total_ms", "total_ms_median")),
         _percent(row["asr_wer"]), _number(row["mos"]), _number(row["words_per_second"]),
         _percent(row["same_as_offline"]))
        for row in result["latency"]
    ]  # fmt: skip
    return _markdown(head, rows)


def write_table(path: Path, text: str) -> None:
    """Into the file, in place of the last one; the rest of the file stays."""
    content = path.read_text() if path.exists() else f"# {path.stem.capitalize()}\n"
    before, _, rest = content.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before.rstrip()}\n\n{text}\n{after.lstrip() and chr(10) + after.lstrip()}")


def hardware(device: str, num_threads: int) -> str:
    """What a measured number has to be read with."""
    if device != "cpu":
        import torch

        return f"one {torch.cuda.get_device_name(device)}"
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return f"{cpu}, {os.cpu_count()} cores, {num_threads} threads"


def _percent(value: float | None, signed: bool = False) -> str:
    return "–" if value is None else f"{100 * value:{'+' if signed else ''}.1f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )
