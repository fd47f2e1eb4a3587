"""Phase `hear` of stage 1: the adaptor learns what was said, by CTC against the LLM's own token embeddings.

The embeddings are centred, so that what the adaptor says about speech is already in the LLM's language.
"""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omni.train import keep
from omni.train.ear import Ear, save_tuned
from omni.train.instructions import examples
from omni.train.words import errors

if TYPE_CHECKING:
    from omni.train.stage1 import Run

logger = logging.getLogger(__name__)
OTHERS = 2048  # tokens that are not in a batch, of which CTC hears at a step
BLANK_SCALE = 3.0  # log of the scale of the cosines at the start
BATCH = 32
ENCODER_PART = 0.3  # of the adaptor's rate, for the encoder's tuned blocks


class Hearing(nn.Module):
    """An ear and what CTC needs beside it: a scale, a blank. Its classes are the tokens that occur, then the blank."""

    mean: Tensor
    tokens: Tensor

    def __init__(self, ear: Ear, embeddings: Tensor, token_ids: Sequence[int]) -> None:
        super().__init__()
        self.encoder, self.adaptor = ear.encoder, ear.adaptor
        mean = embeddings.mean(0)
        self.length = float((embeddings - mean).norm(dim=-1).mean())  # of a centred embedding, on average
        self.log_scale = nn.Parameter(torch.tensor(BLANK_SCALE))
        self.blank = nn.Parameter(torch.randn_like(mean))
        self.class_of = {token: i for i, token in enumerate(token_ids)}
        self.token_ids = list(token_ids)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("tokens", F.normalize(embeddings[self.token_ids] - mean, dim=-1), persistent=False)

    def own_parameters(self) -> list[nn.Parameter]:
        """All but the encoder's; the adaptor's last, so that blocks that join later follow what has moments."""
        return [self.log_scale, self.blank, *self.adaptor.parameters()]

    def knows(self, tokens: Sequence[int]) -> bool:
        return all(token in self.class_of for token in tokens)

    def logits(self, embeddings: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The adaptor's output (B, T, D) → logits of all classes (B, T, tokens + 1), or of some and the blank; and how
        far each length is from an embedding's (B, T, 1).

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
        tokens = {token for text in texts for token in run.transcript(text)}
        path.write_text(json.dumps(sorted(tokens)))
    return Hearing(run.ear, run.embeddings.weight.float(), json.loads(path.read_text()))


def hear_loss(run: "Run", hearing: Hearing, step: int) -> Tensor:
    batch = [(each, run.transcript(each.text)) for each in run.corpus.spoken_at(step)]
    batch = [(each, tokens) for each, tokens in batch if hearing.knows(tokens)]
    with torch.autocast("cpu", torch.bfloat16):
        frames, lengths = run.ear.frames([each.mel for each, _ in batch], mask=True)
        embeddings = run.ear.adaptor(F.dropout(frames, 0.1), lengths)
    num_embeddings = (lengths // run.ear.adaptor.window).tolist()
    return hearing.loss(embeddings.float(), num_embeddings, [tokens for _, tokens in batch])


def train_hearing(run: "Run", rate: float, tune: int = 0, begin: Path | None = None, tokens: bool = False) -> None:
    """`tune` of the encoder's last blocks learn too; `begin` is another run's stage1-hear.pt, to take weights from."""
    hearing = make_hearing(run)
    with torch.no_grad():
        run.ear.adaptor.linear2.bias.copy_(hearing.mean)
    if begin:
        hearing.load_state_dict(torch.load(begin, weights_only=True)["module"], strict=False)
    groups: list[dict] = [{"params": hearing.own_parameters(), "part": 1.0}]
    if tune:
        groups.append({"params": run.ear.tune(tune), "part": ENCODER_PART})
    trained = [x for group in groups for x in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    run.resume(optimizer, hearing)
    for step in run.each_step():
        loss = hear_loss(run, hearing, step)
        run.step(optimizer, loss, trained, rate)
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
    tensors = {name: x.half() for name, x in run.ear.adaptor.state_dict().items()}
    tensors["tokens.ids"] = torch.tensor([*hearing.token_ids, run.tokens(" ")[0]], dtype=torch.int32)
    tensors["tokens.blank"] = F.normalize(hearing.blank.detach(), dim=0).half()
    keep.tensors(folder / "adaptor.safetensors", tensors)
    save_tuned(run.ear.encoder, folder)


@torch.inference_mode()
def hear_heldout(run: "Run", hearing: Hearing) -> float:
    """Token error rate of the held-out questions, greedily decoded."""
    wrong = total = 0
    for number, each in enumerate(run.heldout):
        best = hearing.logits(run.ear([each.mel])[0])[0][0].argmax(-1)
        best = torch.unique_consecutive(best)
        heard = [hearing.token_ids[i] for i in best.tolist() if i < len(hearing.token_ids)]
        said = run.transcript(each.question.instruction)
        wrong += errors(heard, said)
        total += len(said)
        if number % 10 == 0:
            logger.info("%r heard as %r", each.question.instruction, run.tokenizer.decode(heard))
    return wrong / total
