"""`omni evaluate`: ask a checkpoint held-out spoken questions, listen to its answers, and count.

    omni evaluate --model mini --json result.json --table docs/mini.md

Every question is asked aloud and as text. The spoken answer is vocoded and heard by a recogniser that is not Whisper.
Greedy, one question after the other, through the reference parts; serving is measured elsewhere.
"""

import argparse
import json
import logging
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from omni import checkpoints
from omni.audio import wav
from omni.audio.wav import AudioError
from omni.model import checkpoint
from omni.model.ctc import collapse
from omni.model.omni import Omni
from omni.model.packaged import FetchError
from omni.model.prompt import Utterance
from omni.train import measures, scoring
from omni.train.measures import Answer, Recording
from omni.train.recogniser import Recogniser
from omni.train.scoring import ManifestError, Question, Scorer
from omni.vocoder import checkpoint as vocoder_checkpoint
from omni.vocoder.code_hifigan import CodeHiFiGAN
from omni.vocoder.render import offline

logger = logging.getLogger(__name__)

HELDOUT = Path(__file__).parent / "data" / "heldout.jsonl"
MAX_TOKENS = 64  # an answer that is longer has lost its way
SOUND_FILES = (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".webm")

Listen = Callable[[np.ndarray], str]


@dataclass(frozen=True)
class Reply:
    text: str
    token_ids: tuple[int, ...]
    units: tuple[int, ...]
    samples: np.ndarray  # (S,) the spoken answer, empty where no sound was asked for
    seconds: float  # that it took


class Talker:
    """reply = Talker(omni, vocoder)(Utterance("user", speech=samples))"""

    def __init__(self, omni: Omni, vocoder: CodeHiFiGAN, max_tokens: int = MAX_TOKENS) -> None:
        self.omni, self.vocoder, self.max_tokens = omni, vocoder, max_tokens

    @classmethod
    def load(cls, model: str, vocoder: str | None, device: str, max_tokens: int) -> "Talker":
        found = checkpoints.resolve(model, vocoder)
        omni = checkpoint.load(found.model, device)
        return cls(omni, vocoder_checkpoint.load(found.vocoder, device), max_tokens)

    @torch.inference_mode()
    def __call__(self, utterance: Utterance, aloud: bool = True) -> Reply:
        start = time.perf_counter()
        token_ids, states = self._write(self.omni.prompt_embeds([utterance]))
        text = self.omni.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str), "one list of ids gives one text"
        units: list[int] = []
        samples = np.zeros(0, np.float32)
        if aloud:
            classes = self.omni.unit_decoder(states)[0].argmax(-1).tolist()
            units = collapse(classes, self.omni.config.blank)
            samples = offline(self.vocoder, units)
        return Reply(text.strip(), tuple(token_ids), tuple(units), samples, time.perf_counter() - start)

    def _write(self, embeds: Tensor) -> tuple[list[int], Tensor]:
        """Prompt (P, D) → the greedy answer's tokens, and the states (1, T, D) that predicted them."""
        llm, cache = self.omni.llm, self.omni.llm.new_cache()
        states = [llm(embeds[None], cache=cache)[:, -1:]]
        token_ids: list[int] = []
        while True:
            token_ids.append(int(llm.logits(states[-1])[0, 0].argmax()))
            if token_ids[-1] in self.omni.config.eos_token_ids or len(token_ids) == self.max_tokens:
                return token_ids, torch.cat(states, dim=1)
            position = torch.tensor([[len(embeds) + len(token_ids) - 1]], device=embeds.device)
            token = torch.tensor([token_ids[-1:]], device=embeds.device)
            states.append(llm(llm.embed(token), position, cache))


def ask(
    talker: Talker, question: Question, listen: Listen, scorer: Scorer, as_text: bool, keep: Path | None = None
) -> Answer:
    """One question, aloud and (unless not wanted) as text."""
    reply = talker(Utterance("user", speech=wav.read(question.audio)))
    if keep is not None:
        wav.write(keep / f"{question.id}.wav", reply.samples)
    heard = listen(reply.samples)
    written = talker(Utterance("user", text=question.instruction), aloud=False).text if as_text else None
    return Answer(
        id=question.id,
        kind=question.kind,
        voice=question.voice,
        asked=question.instruction,
        text=reply.text,
        heard=heard,
        written=written,
        fitting=scorer(question, reply.text),
        fitting_heard=scorer(question, heard),
        fitting_written=None if written is None else scorer(question, written),
        num_tokens=len(reply.token_ids),
        num_units=len(reply.units),
        answer_seconds=len(reply.samples) / wav.SAMPLE_RATE,
        compute_seconds=reply.seconds,
    )


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
    listen: Listen,
    scorer: Scorer = scoring.fits,
    as_text: bool = True,
    keep: Path | None = None,
) -> list[Answer]:
    """Every question in turn, with a progress bar. `keep` is a folder for the spoken answers."""
    answers = []
    for question in (bar := tqdm(questions, desc="evaluate", unit="question", disable=None)):
        answers.append(ask(talker, question, listen, scorer, as_text, keep))
        bar.set_postfix(fitting=f"{measures.share(answer.fitting for answer in answers):.0%}", refresh=False)
    return answers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="mini", help="mini, tiny or a checkpoint directory (default: %(default)s)")
    parser.add_argument("--vocoder", metavar="DIR", help="another vocoder than the checkpoint's own")
    parser.add_argument("--manifest", type=Path, default=HELDOUT, help="questions, one JSON object a line")
    parser.add_argument("--limit", type=int, metavar="N", help="ask only N questions, spread over the manifest")
    parser.add_argument("--no-text", action="store_true", help="do not ask the questions as text as well")
    parser.add_argument("--scorer", default="fits", help="'fits' or module:function (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, help="of one answer (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--recordings", type=Path, metavar="DIR", help="also answer every sound file in this folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write numbers and answers to this file")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table into this Markdown file")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write the spoken answers into this folder")


def main(args: argparse.Namespace) -> int:
    start = time.perf_counter()
    try:
        scorer = scoring.find_scorer(args.scorer)
        questions = spread(scoring.read_manifest(args.manifest), args.limit)
        recordings = sound_files(args.recordings) if args.recordings else []
        talker = Talker.load(args.model, args.vocoder, args.device, args.max_tokens)
        listen = Recogniser.fetched()
    except (ManifestError, checkpoints.UnknownCheckpoint, FetchError) as exc:
        print(f"omni evaluate: {exc}", file=sys.stderr)
        return 2
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    answers = evaluate(talker, questions, listen, scorer, not args.no_text, args.keep)
    shown = [answer_recording(talker, path, args.recordings, listen) for path in tqdm(recordings, disable=None)]
    result = measures.summary(answers) | {
        "model": args.model,
        "scorer": args.scorer,
        "command": command_line(),
        "hardware": measures.hardware(args.device, torch.get_num_threads()),
        "minutes": (time.perf_counter() - start) / 60,
    }
    table = measures.table(result, answers, shown)
    print(table)
    if args.json:
        content = measures.as_json(result, answers, shown)
        args.json.write_text(json.dumps(content, indent=1, ensure_ascii=False))
    if args.table:
        measures.write_table(args.table, table)
    return 0


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
