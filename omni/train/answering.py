"""Phases `read` and `answer` of stage 1: the LLM's deltas learn the short spoken answers, by next-token loss.

`read` asks in writing; `answer` asks most questions aloud and trains the adaptor too, which goes on hearing beside it.
A row is a dialogue of one to three turns (corpus.py); some questions mean nothing without what went before.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omni.model.prompt import SPEECH, Utterance
from omni.train import scoring
from omni.train.corpus import Dialogue, Heldout, pad
from omni.train.hearing import hear_heldout, hear_loss, make_hearing
from omni.train.instructions import examples, follow_ups
from omni.train.low_rank import LowRank, load_deltas, low_rank, save_deltas
from omni.train.scoring import Question

if TYPE_CHECKING:
    from omni.train.ear import Ear
    from omni.train.following import Misheard
    from omni.train.stage1 import Run

logger = logging.getLogger(__name__)
READ_BATCH, ANSWER_BATCH = 24, 12
HEAR_SHARE = 0.5  # of the loss of phase `hear` that goes on in phase `answer`


def train_reading(run: "Run", deltas: dict[str, LowRank], rate: float) -> None:
    modules = nn.ModuleList(deltas.values())
    trained = low_rank(deltas)
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True)
    run.resume(optimizer, modules)
    for step in run.each_step():
        loss = answer_loss(run, run.corpus.dialogues_at(step, READ_BATCH, spoken_share=0.0))
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
        {"params": hearing.own_parameters(), "part": 0.5},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True)
    modules = nn.ModuleDict({"hearing": hearing, "deltas": nn.ModuleList(deltas.values())})
    trained = [*low_rank(deltas), *hearing.own_parameters()]
    run.resume(optimizer, modules)
    for step in run.each_step():
        loss = answer_loss(run, run.corpus.dialogues_at(step, ANSWER_BATCH, spoken_share))
        run.step(optimizer, loss + HEAR_SHARE * hear_loss(run, hearing, step), trained, rate)
        if run.time_to_look():
            run.save(optimizer, modules)
            run.export(deltas)
            run.note(heard_wrong=hear_heldout(run, hearing), **ask_heldout(run, every=4, ways=("voice",)))
    run.save(optimizer, modules)
    run.export(deltas)
    run.note(heard_wrong=hear_heldout(run, hearing), **ask_heldout(run))


def answer_loss(run: "Run", dialogues: Sequence[Dialogue], hear: "Ear | Misheard | None" = None) -> Tensor:
    """Mean next-token loss over the tokens and the ends of every turn's answer. `hear` takes the run's ear's place."""
    spoken = [said for dialogue in dialogues for _, said in dialogue if said is not None]
    heard: Iterator[Tensor] = iter(())
    if spoken:
        with torch.autocast("cpu", torch.bfloat16):
            embeddings, lengths = (hear or run.ear)([said.mel for said in spoken], mask=True)
        heard = iter([row[:length] for row, length in zip(embeddings, lengths.tolist(), strict=True)])
    rows, where, labels = zip(*(lay_out(run, dialogue, heard) for dialogue in dialogues), strict=True)
    hidden = run.llm.model(inputs_embeds=pad(rows, run.llm.dtype)).last_hidden_state  # right-padded, causal: no mask
    predicting = torch.cat([hidden[i, positions] for i, positions in enumerate(where)])
    return F.cross_entropy(run.llm.lm_head(predicting).float(), torch.cat(labels))


def lay_out(run: "Run", dialogue: Dialogue, heard: Iterator[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """A dialogue → the LLM's input (P, D); the positions (N,) that predict its answers; and what they predict (N,).

    `heard` are its spoken questions' embeddings (T, D) in order. The layout is that of serving's prompts.
    """
    end = run.tokenizer.eos_token_id
    conversation: list[Utterance] = []
    prompt: list[int] = []
    predicting: list[int] = []
    labels: list[int] = []
    for example, said in dialogue:
        speech = None if said is None else np.zeros(0, np.float32)
        conversation.append(Utterance("user", text=example.instruction, speech=speech))
        prompt = run.prompt(conversation)
        answer = run.tokens(example.response)
        predicting += range(len(prompt) - 1, len(prompt) + len(answer))
        labels += [*answer, end]
        conversation.append(Utterance("assistant", token_ids=tuple(answer)))
    ids = [*prompt, *labels[-1 - len(answer) : -1]]
    embeddings, sizes = [], []
    for token in ids:
        embeddings.append(next(heard).float() if token == SPEECH else run.embed([token]))
        sizes.append(len(embeddings[-1]))
    last = torch.tensor(sizes).cumsum(0) - 1  # of each id, its last position
    return torch.cat(embeddings), last[predicting], torch.tensor(labels)


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


@torch.inference_mode()
def follow_up_in_writing(run: "Run", every: int = 1) -> dict[str, float]:
    """Share of held-out follow-ups that get a fitting answer, after a question of the same relation and its answer."""
    train, (_, heldout) = examples(0)[0], follow_ups()
    before = {each.group.partition("/")[0]: each for each in reversed(train) if each.kind == "factual"}
    asked = heldout[::every]
    prompts = []
    for each in asked:
        first = before[each.group.partition("/")[0]]
        conversation = [Utterance("user", text=first.instruction), Utterance("assistant", text=first.response)]
        prompts.append(run.embed(run.prompt([*conversation, Utterance("user", text=each.instruction)])))
    fits = [
        scoring.fits(Question("", Path(), each.instruction, each.kind, fact=each.fact), answer)
        for each, answer in zip(asked, generate(run, prompts), strict=True)
    ]
    return {"follow-up_text": sum(fits) / len(fits)}


def prompt_of(run: "Run", each: "Heldout", way: str) -> Tensor:
    if way == "voice":
        return run.splice(run.ear([each.mel])[0][0])
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
