"""Spoken and written questions → stage 1's batches, by step. Shards that appear while it is at work join in.

    corpus = Corpus(run / "speech", seed=0, heard=32)
    corpus.spoken_at(step)                                    # 32 utterances of like length
    corpus.dialogues_at(step, 12, spoken_share=0.7)           # dialogues of as many questions, spoken or in writing
    corpus.state()                                            # what was there when; Corpus(…, state=…) goes on from it

Utterances come in rounds: each takes every one that was there when it began once. Which shards were there is the only
thing beside seed and step that decides a batch, so a checkpoint holds it, and a run that was killed goes on as if not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from omni.train import scoring, speech
from omni.train.instructions import Example, examples, follow_ups
from omni.train.scoring import Question

KIND_SHARES = {"chitchat": 0.44, "factual": 0.38, "everyday": 0.08, "repeat": 0.10}
TURNS = {1: 0.5, 2: 0.3, 3: 0.2}  # of a dialogue
FOLLOWED = 0.7  # of the questions that a follow-up may follow are followed by one, where a dialogue goes on
POOL = 16  # batches whose utterances are drawn, and sorted by length, together


class CorpusError(ValueError):
    """There is no speech to learn from, or shards that a run has begun with are gone."""


@dataclass(frozen=True)
class Heldout:
    """A held-out question, and its log-mel (F, n_mels)."""

    question: Question
    mel: Tensor


def read_heldout(manifest: Path) -> list[Heldout]:
    """The questions for development; those of the test are for `omni evaluate`."""
    return [
        Heldout(question, speech.log_mel(soundfile.read(question.audio, dtype="float32")[0]))
        for question in scoring.read_manifest(manifest)
        if question.split != "test"
    ]


class Corpus:
    """`heard` is the size of its batches of utterances; `state` what an earlier start of the same run had read."""

    def __init__(self, folder: Path, seed: int, heard: int, state: dict[str, Any] | None = None) -> None:
        self.folder, self.seed, self.heard = folder, seed, heard
        self.shards: list[str] = []  # in the order in which they were read
        self.spoken: list[speech.Spoken] = []
        self.to_answer: dict[str, dict[str, list[Asked]]] = {}
        train, _ = examples(0)
        self.written = _by_kind_and_group((each, None) for each in (*train, *follow_ups()[0]) if each.response)
        self.pairs: dict[str, list[str]] = {}  # a relation → the groups that a follow-up asks of
        for group in self.written["follow-up"]:
            self.pairs.setdefault(_relation(group), []).append(group)
        if state is None:
            self._read(self._new())
            state = {"shards": self.shards, "rounds": [(0, len(self.spoken))], "begun": 0}
        else:
            self._read(state["shards"])
        self.rounds: list[tuple[int, int]] = [(first, size) for first, size in state["rounds"]]  # from step, utterances
        self.begun: int = state["begun"]  # the round for which it last looked for shards
        self._groups: tuple[int, list[np.ndarray]] = (-1, [])

    def state(self) -> dict[str, Any]:
        return {"shards": list(self.shards), "rounds": list(self.rounds), "begun": self.begun}

    def spoken_at(self, step: int) -> list[speech.Spoken]:
        """Utterances of similar length, so that little is padding. A round takes every one once."""
        first = self._round(step)
        if not self.spoken:
            raise CorpusError(f"{self.folder} holds no speech (*.safetensors): make some with omni train data.")
        return [self.spoken[i] for i in self._groups[1][step - first]]

    def dialogues_at(self, step: int, count: int, spoken_share: float) -> "list[Dialogue]":
        """Dialogues of about equal length that have `count` questions, or one or two more, between them."""
        self._round(step)
        draw = np.random.default_rng([self.seed, step, 1])
        pool: list[Dialogue] = []
        while sum(map(len, pool)) < 4 * count:
            pool.append(self._draw_dialogue(draw, spoken_share))
        pool.sort(key=lambda dialogue: sum(_positions(*each) for each in dialogue))
        before = np.cumsum([0, *map(len, pool)])  # questions
        start = int(draw.integers(np.searchsorted(before, before[-1] - count, side="right")))
        end = int(np.searchsorted(before, before[start] + count))
        return pool[start:end]

    def _draw_dialogue(self, draw: np.random.Generator, spoken_share: float) -> "Dialogue":
        turns = int(draw.choice(list(TURNS), p=list(TURNS.values())))
        dialogue = [self._draw_one(draw, spoken_share)]
        while len(dialogue) < turns:
            after = self._draw_follow_up(dialogue[-1][0], draw, spoken_share) if draw.random() < FOLLOWED else None
            dialogue.append(after or self._draw_one(draw, spoken_share))
        return dialogue

    def _draw_one(self, draw: np.random.Generator, spoken_share: float) -> "Asked":
        """By kind, then by group (so that no intent's answer becomes everyone's), then at random."""
        kind = str(draw.choice(list(KIND_SHARES), p=list(KIND_SHARES.values())))
        # What nobody has said aloud yet is asked in writing.
        spoken = kind != "repeat" and kind in self.to_answer and draw.random() < spoken_share
        groups = list((self.to_answer if spoken else self.written)[kind].values())
        weights = np.sqrt([len(group) for group in groups])
        group = groups[int(draw.choice(len(groups), p=weights / weights.sum()))]
        return group[int(draw.integers(len(group)))]

    def _draw_follow_up(self, example: Example, draw: np.random.Generator, spoken_share: float) -> "Asked | None":
        """What may be asked after it: the same of another pair. None after a question that is of no relation."""
        others = [group for group in self.pairs.get(_relation(example.group), ()) if group != example.group]
        if example.kind not in ("factual", "follow-up") or not others:
            return None
        group = others[int(draw.integers(len(others)))]
        said = self.to_answer.get("follow-up", {}).get(group, ()) if draw.random() < spoken_share else ()
        asked = said or self.written["follow-up"][group]
        return asked[int(draw.integers(len(asked)))]

    def _round(self, step: int) -> int:
        """The step at which the round began that `step` belongs to, its batches made. Looks for shards at a new one."""
        first, size = next(each for each in reversed(self.rounds) if each[0] <= step)
        length = max(1, -(-size // self.heard))  # in batches
        start = first + (step - first) // length * length
        if start > self.begun:
            self.begun = start
            self._read(self._new())
            if len(self.spoken) != size:
                size = len(self.spoken)
                self.rounds.append((start, size))
        if self._groups[0] != start:
            self._groups = (start, self._batches(start, size))
        return start

    def _batches(self, start: int, size: int) -> list[np.ndarray]:
        """A round's utterances: drawn pool by pool, each pool sorted by length and cut into batches, those shuffled."""
        draw = np.random.default_rng([self.seed, start, 0])
        order = draw.permutation(size)
        lengths = np.array([len(said.mel) for said in self.spoken[:size]])
        groups: list[np.ndarray] = []
        for first in range(0, size, POOL * self.heard):
            pool = order[first : first + POOL * self.heard]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            cut = [pool[i : i + self.heard] for i in range(0, len(pool), self.heard)]
            groups += [cut[i] for i in draw.permutation(len(cut))]
        return groups

    def _new(self) -> list[str]:
        return sorted({path.name for path in self.folder.glob("*.safetensors")} - set(self.shards))

    def _read(self, names: Sequence[str]) -> None:
        for name in names:
            if not (self.folder / name).exists():
                raise CorpusError(f"{self.folder / name} is gone; this run has learnt from it. Bring it back.")
            self.spoken += speech.read_shard(self.folder / name)
            self.shards.append(name)
        if names:
            self.to_answer = _by_kind_and_group((s.example, s) for s in self.spoken if s.example.response)


Asked = tuple[Example, speech.Spoken | None]  # a question in writing, or spoken
Dialogue = list[Asked]  # turn by turn, each with its answer


def _by_kind_and_group(asked: Iterator[Asked]) -> dict[str, dict[str, list[Asked]]]:
    kinds: dict[str, dict[str, list[Asked]]] = {}
    for each in asked:
        kinds.setdefault(each[0].kind, {}).setdefault(each[0].group, []).append(each)
    return kinds


def _relation(group: str) -> str:
    """ "capital/Spain" → "capital"."""
    return group.partition("/")[0]


def _positions(example: Example, said: speech.Spoken | None) -> float:
    """About how long it is for the LLM."""
    question = len(said.mel) / 10 if said is not None else len(example.instruction) / 4.5
    return question + len(example.response) / 4.5


def pad(rows: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    """[(T_i, D)] → (B, longest T, D), zeros on the right."""
    return nn.utils.rnn.pad_sequence([row.to(dtype) for row in rows], batch_first=True)
