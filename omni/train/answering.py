"""Phases `read` and `answer` of stage 1: the LLM's deltas learn the short spoken answers, by next-token loss.

`read` asks in writing; `answer` asks most questions aloud and trains the adaptor too, which goes on hearing beside it.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omni.model.prompt import Utterance
from omni.train import scoring
from omni.train.corpus import Asked, Heldout, pad
from omni.train.hearing import hear_heldout, hear_loss, make_hearing
from omni.train.low_rank import LowRank, load_deltas, low_rank, save_deltas

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
        loss = answer_loss(run, run.corpus.asked_at(step, READ_BATCH, spoken_share=0.0))
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
        loss = answer_loss(run, run.corpus.asked_at(step, ANSWER_BATCH, spoken_share))
        run.step(optimizer, loss + HEAR_SHARE * hear_loss(run, hearing, step), trained, rate)
        if run.time_to_look():
            run.save(optimizer, modules)
            run.export(deltas)
            run.note(heard_wrong=hear_heldout(run, hearing), **ask_heldout(run, every=4, ways=("voice",)))
    run.save(optimizer, modules)
    run.export(deltas)
    run.note(heard_wrong=hear_heldout(run, hearing), **ask_heldout(run))


def answer_loss(run: "Run", batch: "Sequence[Asked]", hear: "Ear | Misheard | None" = None) -> Tensor:
    """Mean next-token loss over the answers' tokens and the end. `hear` takes the run's ear's place."""
    spoken = [said for _, said in batch if said is not None]
    if spoken:
        with torch.autocast("cpu", torch.bfloat16):
            heard, lengths = (hear or run.ear)([said.mel for said in spoken], mask=True)
        questions = iter([run.splice(row[:length]) for row, length in zip(heard, lengths.tolist(), strict=True)])
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
