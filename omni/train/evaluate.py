"""`omni evaluate`: ask a checkpoint held-out spoken questions, listen to its answers, and count.

    omni evaluate --model mini --json result.json --table docs/mini.md --plots plots
    omni evaluate --model runs/new/checkpoint --against mini
    omni evaluate --model runs/new/checkpoint --adaptor medical --against runs/new/checkpoint

The paper's protocol (arXiv 2409.06666, section 4): every question is asked aloud and as text; the spoken answer is
vocoded and heard by a recogniser that is not Whisper, and rated by a MOS predictor; a part of the questions is asked
once more for the latency and quality of every Ω. Greedy, one question after the other, through the reference parts;
serving under load is measured elsewhere. A row with a history is a dialogue: the earlier questions are asked first, and
what the checkpoint answered stands between, as in a session's memory. Only the last answer is spoken and scored.
"""

import argparse
import json
import logging
import math
import random
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from omni import checkpoints
from omni.audio import wav
from omni.audio.wav import AudioError
from omni.model import adaptors
from omni.model.adaptors import BadAdaptorName, UnknownAdaptor
from omni.model.packaged import FetchError
from omni.model.prompt import Utterance
from omni.train import compare, latency, manifest, measures, plots, scoring
from omni.train.chat import ChatError
from omni.train.latency import OMEGAS, Rate
from omni.train.manifest import ManifestError
from omni.train.measures import Answer, Before, Recording
from omni.train.mos import Mos, MosMissing
from omni.train.plots import PlotsMissing
from omni.train.recogniser import Recogniser
from omni.train.scoring import Earlier, Question, Score, Scorer
from omni.train.talker import MAX_TOKENS, Talker

logger = logging.getLogger(__name__)

HELDOUT = Path(__file__).parent / "data" / "heldout.jsonl"
DIALOGUES = HELDOUT.with_name("dialogues.jsonl")
TIMED = 12  # questions that are asked once more for every Ω, unless told otherwise
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NO_ADAPTOR = (UnknownAdaptor, BadAdaptorName)
SOUND_FILES = (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".webm")

Listen = Callable[[np.ndarray], str]


@dataclass(frozen=True)
class Listeners:
    """Who hears, rates and judges the answers."""

    listen: Listen
    scorer: Scorer = scoring.fits
    rate: Rate | None = None


def ask(
    talker: Talker,
    question: Question,
    listeners: Listeners,
    as_text: bool,
    keep: Path | None = None,
    given: bool = False,
) -> Answer:
    """One question, aloud and (unless not wanted) as text; what was said before it: see converse."""
    conversation, aloud = converse(talker, question, True, given)
    reply = talker(conversation)
    if keep is not None:
        wav.write(keep / f"{question.id}.wav", reply.samples)
    heard = listeners.listen(reply.samples)
    scores = [listeners.scorer(aloud, reply.text), listeners.scorer(aloud, heard), None]
    written = None
    if as_text:
        conversation, in_writing = converse(talker, question, False, given)
        written = talker(conversation, aloud=False).text
        scores[2] = listeners.scorer(in_writing, written)
    points = [score.points if isinstance(score, Score) else None for score in scores]
    return Answer(
        id=question.id,
        kind=question.kind,
        voice=question.voice,
        asked=question.instruction,
        text=reply.text,
        heard=heard,
        written=written,
        fitting=bool(scores[0]),
        fitting_heard=bool(scores[1]),
        fitting_written=None if written is None else bool(scores[2]),
        num_tokens=len(reply.token_ids),
        num_units=len(reply.units),
        answer_seconds=len(reply.samples) / wav.SAMPLE_RATE,
        compute_seconds=reply.seconds,
        mos=listeners.rate(reply.samples) if listeners.rate else None,
        points=points[0],
        points_heard=points[1],
        points_written=points[2],
        before=tuple(Before(each.instruction, each.response or "") for each in aloud.history),
    )


def converse(talker: Talker, question: Question, aloud: bool, given: bool = False) -> tuple[list[Utterance], Question]:
    """The conversation that ends with the question, and the question with what was answered before it.

    The earlier questions are asked in order; the talker's own answers stand between, or, with `given`, those that the
    history has. As in a session's memory they are tokens, and an empty one leaves no turn.
    """
    conversation: list[Utterance] = []
    history: list[Earlier] = []
    for earlier in question.history:
        conversation.append(_said(earlier, aloud))
        known = earlier.response if given else None
        answer = talker(conversation, aloud=False) if known is None else known
        turn = talker.turn(answer)
        conversation += [turn] if turn.token_ids else []
        history.append(replace(earlier, response=answer if isinstance(answer, str) else answer.text))
    return [*conversation, _said(question, aloud)], replace(question, history=tuple(history))


def _said(question: Question | Earlier, aloud: bool) -> Utterance:
    if aloud:
        return Utterance("user", speech=wav.read(question.audio))
    return Utterance("user", text=question.instruction)


def answer_recording(talker: Talker, path: Path, root: Path, listen: Listen) -> Recording:
    """A recording of a person: nobody wrote down what fits, so what was asked and answered is shown."""
    name = path.relative_to(root).as_posix()
    try:
        samples = wav.read(path)
    except AudioError as exc:
        return Recording(name, 0.0, error=str(exc))
    reply = talker(Utterance("user", speech=samples))
    return Recording(name, len(samples) / wav.SAMPLE_RATE, listen(samples), reply.text, listen(reply.samples))


def evaluate(
    talker: Talker,
    questions: Sequence[Question],
    listeners: Listeners,
    as_text: bool = True,
    keep: Path | None = None,
    given: bool = False,
) -> list[Answer]:
    """Every question in turn, with a progress bar. `keep` is a folder for the spoken answers; `given`: see converse."""
    answers = []
    for question in (bar := tqdm(questions, desc="evaluate", unit="question", disable=None)):
        answers.append(ask(talker, question, listeners, as_text, keep, given))
        bar.set_postfix(fitting=f"{measures.share(answer.fitting for answer in answers):.0%}", refresh=False)
    return answers


def time_answers(
    talker: Talker, questions: Sequence[Question], listeners: Listeners, omegas: Sequence[float], given: bool = False
) -> list[dict]:
    """The questions once more, for each Ω. The first is asked twice: what is compiled once is not counted."""
    if not questions or not omegas:
        return []
    conversations = (converse(talker, each, True, given)[0] for each in [questions[0], *questions])
    latency.think(talker, next(conversations))
    bar = tqdm(conversations, desc="latency", unit="question", total=len(questions), disable=None)
    return latency.by_omega(latency.measure(talker, each, listeners.listen, listeners.rate, omegas) for each in bar)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="mini", help="mini, tiny or a checkpoint directory (default: %(default)s)")
    parser.add_argument("--vocoder", metavar="DIR", help="another vocoder than the checkpoint's own")
    parser.add_argument("--adaptor", default="", metavar="NAME", help="of the checkpoint's adaptors/")
    parser.add_argument("--against", metavar="MODEL", help="another checkpoint, asked the same and shown beside it")
    parser.add_argument("--against-adaptor", default="", metavar="NAME", help="of that checkpoint's adaptors/")
    parser.add_argument("--against-vocoder", metavar="DIR", help="another vocoder than that checkpoint's own")
    parser.add_argument("--manifest", type=_manifest, default=HELDOUT, help="questions, one JSON object a line; or "
                        "dialogues: the held-out ones that ship (default: the held-out questions)")  # fmt: skip
    parser.add_argument("--given-history", action="store_true", help="in dialogues, let the answers before the last "
                        "be those of the manifest, where it has them, and not the checkpoint's own")  # fmt: skip
    parser.add_argument("--on-bad", choices=manifest.ON_BAD, default="refuse", help="bad rows (default: %(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="ask only N questions, spread over the manifest")
    parser.add_argument("--no-text", action="store_true", help="do not ask the questions as text as well")
    parser.add_argument("--no-mos", action="store_true", help="do not rate the spoken answers")
    parser.add_argument("--omega", type=omegas, default=OMEGAS, metavar="Ω,Ω,…", help="units in a chunk, numbers and "
                        "'offline', or 'none' (default: 10,20,40,60,80,100,offline)")  # fmt: skip
    parser.add_argument("--timed", type=int, default=TIMED, metavar="N", help="questions asked once more for every Ω, "
                        "at most (default: %(default)s)")  # fmt: skip
    parser.add_argument("--scorer", default="fits", help="'fits', openai:URL#MODEL (a judge; its key is in "
                        "$OMNI_CHAT_KEY) or module:function (default: %(default)s)")  # fmt: skip
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, help="of one answer (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the model (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of whatever is drawn (default: %(default)s)")
    parser.add_argument("--recordings", type=Path, metavar="DIR", help="also answer every sound file in this folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write numbers and answers to this file")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table into this Markdown file")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw fitting answers and latency into this folder")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write the spoken answers into this folder")


def omegas(text: str) -> tuple[float, ...]:
    """ "10,40,offline" → (10.0, 40.0, inf)"""
    if text == "none":
        return ()
    found = tuple(math.inf if each == "offline" else float(each) for each in text.split(","))
    if min(found) < 1:
        raise ValueError("a chunk holds at least one unit")
    return found


def _manifest(named: str) -> Path:
    return DIALOGUES if named == "dialogues" else Path(named)


def main(args: argparse.Namespace) -> int:
    try:
        return run(args)
    except (ManifestError, checkpoints.UnknownCheckpoint, FetchError, ChatError, PlotsMissing, *NO_ADAPTOR) as exc:
        print(f"omni evaluate: {exc}", file=sys.stderr)
        return 2


def run(args: argparse.Namespace) -> int:
    start = time.perf_counter()
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)
    random.seed(args.seed)
    scorer = scoring.find_scorer(args.scorer)
    questions, bad = scoring.read_questions(args.manifest, args.on_bad, answers_known=scorer is scoring.fits)
    questions = spread(questions, args.limit)
    recordings = sound_files(args.recordings) if args.recordings else []
    wanted = [(args.model, args.vocoder, args.adaptor)]
    if args.against:
        wanted.append((args.against, args.against_vocoder, args.against_adaptor))
    for model, vocoder, adaptor in wanted:  # what is missing is told before an hour of work
        adaptors.check(adaptor, adaptors.find(checkpoints.resolve(model, vocoder).model))
    listeners = Listeners(Recogniser.fetched(), scorer, None if args.no_mos else _mos())
    if args.plots:
        plots.require()
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    about = {"scorer": args.scorer, "seed": args.seed, "command": command_line(), "bad_rows": [vars(b) for b in bad]}
    results: list[tuple[dict, list[Answer]]] = []
    for number, (model, vocoder, adaptor) in enumerate(wanted):
        talker = Talker.load(model, vocoder, args.device, args.max_tokens, DTYPES[args.dtype], adaptor)
        name = f"{model} with {adaptor}" if adaptor else model
        keep, given = args.keep if number == 0 else None, args.given_history
        answers = evaluate(talker, questions, listeners, not args.no_text, keep, given)
        timed = time_answers(talker, spread(questions, args.timed), listeners, args.omega, given)
        results.append((measures.summary(answers) | {"model": name, "latency": timed}, answers))
        if number == 0:
            paths = tqdm(recordings, desc="recordings", disable=None)
            shown = [answer_recording(talker, path, args.recordings, listeners.listen) for path in paths]
        del talker
    (result, answers), other = results[0], results[1] if args.against else None
    hardware = measures.hardware(args.device, torch.get_num_threads())
    result |= about | {"hardware": hardware, "minutes": (time.perf_counter() - start) / 60}
    if other is not None:
        result["difference"] = compare.difference(answers, other[1], args.seed)
    table = measures.table(result, answers, shown, other[0] if other else None)
    print(table)
    if args.json:
        content = measures.as_json(result, answers, shown)
        if other is not None:
            content["against"] = measures.as_json(other[0], other[1], [])
        args.json.write_text(json.dumps(content, indent=1, ensure_ascii=False))
    if args.table:
        measures.write_table(args.table, table)
    if args.plots:
        draw(args.plots, [each for each, _ in results])
    return 0


def draw(folder: Path, results: Sequence[dict]) -> None:
    plots.fitting(folder / "fitting.png", {each["model"]: each for each in results})
    if all(each["latency"] for each in results):
        plots.latency(folder / "latency.png", {each["model"]: each["latency"] for each in results})


def _mos() -> Rate | None:
    try:
        return Mos.installed()
    except MosMissing as exc:
        logger.warning("%s MOS is not measured.", exc)
        return None


def spread(questions: list[Question], limit: int | None) -> list[Question]:
    """`limit` questions, evenly taken from all, so that every kind is asked."""
    if limit is None or limit >= len(questions):
        return questions
    return [questions[i * len(questions) // limit] for i in range(limit)]


def sound_files(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SOUND_FILES)
    if not found:
        raise ManifestError(f"{folder} holds no sound files ({', '.join(SOUND_FILES)}).")
    return found


def command_line() -> str:
    return shlex.join(["omni", *sys.argv[1:]])
