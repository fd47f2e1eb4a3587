"""Phase `follow` of stage 1: the LLM learns to answer what the adaptor hears, mistakes included. The adaptor is frozen.

It is for an adaptor that hands on tokens (`hear --tokens`). On the questions it was trained on, such an adaptor hears
half as many tokens wrong as on new ones, and an LLM that has only read has never seen a mistake. So tokens are drawn
from what the adaptor finds likely in speech with gaps: on the training questions, .22 to .28 of them are then wrong.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from omni.train import ear
from omni.train.answering import READ_BATCH, answer_loss, ask_heldout, follow_up_in_writing
from omni.train.ear import Ear
from omni.train.low_rank import LowRank, load_deltas, low_rank, save_deltas

if TYPE_CHECKING:
    from omni.train.stage1 import Run

LIKELY = 8  # tokens of a position, of which one is drawn
TEMPERATURE = 1.15
SHARPNESS = 83.0  # of the cosines, where the run has no phase `hear` to say


class Misheard:
    """As an Ear, but the adaptor's tokens are drawn rather than decided."""

    def __init__(self, ear: Ear, sharpness: float) -> None:
        assert ear.adaptor.tokens is not None, "the adaptor hands on tokens"
        self.ear, self.tokens, self.sharpness = ear, ear.adaptor.tokens, sharpness

    def __call__(self, mels: Sequence[Tensor], mask: bool = False) -> tuple[Tensor, Tensor]:
        classes, lengths = self.classes(mels, mask)
        return self.tokens.embed(classes, lengths), lengths

    @torch.no_grad()
    def classes(self, mels: Sequence[Tensor], mask: bool = False) -> tuple[Tensor, Tensor]:
        """(B, T): the token that each position hears, or the blank; and how many positions each row has (B,)."""
        frames, lengths = self.ear.frames(mels, mask)
        with torch.autocast("cpu", enabled=False):
            x = self.ear.adaptor.embed(frames.float(), lengths)
            cosines = self.tokens.likeness(x) / (x - self.tokens.mean).norm(dim=-1, keepdim=True)
        likely, which = cosines.topk(LIKELY)
        drawn = torch.distributions.Categorical(logits=likely * self.sharpness / TEMPERATURE).sample()
        return which.gather(-1, drawn[..., None])[..., 0], lengths // self.ear.adaptor.window


def train_following(run: "Run", deltas: dict[str, LowRank], rate: float, spoken_share: float) -> None:
    export = run.folder / "export"
    run.ear = ear.load(export / "adaptor.safetensors", run.embeddings.weight)
    if (export / "llm_delta.safetensors").exists():
        load_deltas(deltas, export / "llm_delta.safetensors")
    heard = run.folder / "stage1-hear.pt"
    known = (
        torch.load(heard, weights_only=True, mmap=True)["module"]["log_scale"].exp() if heard.exists() else SHARPNESS
    )
    misheard = Misheard(run.ear, float(known))
    modules, trained = nn.ModuleList(deltas.values()), low_rank(deltas)
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True)
    run.resume(optimizer, modules)
    for step in run.each_step():
        loss = answer_loss(run, run.corpus.dialogues_at(step, READ_BATCH, spoken_share), misheard)
        run.step(optimizer, loss, trained, rate)
        if run.time_to_look():
            run.save(optimizer, modules)
            run.note(**ask_heldout(run, every=2), **follow_up_in_writing(run, every=2))
    run.save(optimizer, modules)
    export.mkdir(exist_ok=True)
    save_deltas(deltas, export / "llm_delta.safetensors", torch.bfloat16)
    run.note(**ask_heldout(run), **follow_up_in_writing(run))
