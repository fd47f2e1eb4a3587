"""What the 8B trainers learn from, by step: made up for a profile, or read from a manifest. The step decides the batch.

    batch = ManifestBatches(rows, prompt, tokenizer, shape, size=8, padded=False, seed=0)(step=120)

Batch N follows from the seed and N alone: a run that was killed goes on with the very next batch, and every epoch
takes each row once. Several processes take their turns: process r of n learns rows r, r + n … of a batch.

A row may have a history: earlier questions, spoken, with their answers. Its prompt is then the one that serving builds
for that conversation: every earlier question as its speech embeddings, every earlier answer as its own tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from omni.audio import mel, wav
from omni.model.prompt import SPEECH, Prompt, Utterance
from omni.train import manifest
from omni.train.manifest import Bad, BadRow
from omni.train.shapes import Shape

TEMPLATE = (45, 17)  # prompt tokens before and after the speech, about the published template's


@dataclass(frozen=True)
class Batch:
    mel: Tensor  # (Q, n_mels, F) at 100 Hz: every spoken question of every row's prompt, in order
    lengths: Tensor  # (Q,) mel frames, multiples of 10
    prompts: list[list[int]]  # B prompts' tokens, SPEECH where a question's embeddings go
    answers: list[list[int]]  # with the end token
    units: list[list[int]]  # merged; empty where stage 1 does not need them

    @property
    def num_positions(self) -> int:
        """LLM positions, padding not counted."""
        spoken = int((self.lengths // 10).sum())
        written = sum(len(prompt) for prompt in self.prompts) - len(self.lengths)
        return spoken + written + sum(len(answer) - 1 for answer in self.answers)


@dataclass(frozen=True)
class RandomBatches:
    """The paper's averages: a question of `seconds` (padded to 30 s, or as long as it is), 50 tokens, 554 units."""

    shape: Shape
    size: int
    padded: bool
    seconds: float = 7.5
    answer: int = 50
    num_units: int = 554
    seed: int = 0

    @property
    def frames(self) -> int:
        """Encoder frames of one question, at 50 Hz."""
        return 1500 if self.padded else int(self.seconds * 50) // 5 * 5

    def __call__(self, step: int) -> Batch:
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        features = torch.randn(self.size, self.shape.encoder.num_mels, 2 * self.frames, generator=draw)
        vocabulary = self.shape.llm["vocab_size"]

        def tokens(count: int) -> list[int]:
            return torch.randint(vocabulary, (count,), generator=draw).tolist()

        prompt = [*tokens(TEMPLATE[0]), SPEECH, *tokens(TEMPLATE[1])]
        limit = min(self.num_units, self.answer * self.shape.upsample // 2)
        units = torch.randint(self.shape.num_units, (self.size, limit), generator=draw).tolist()
        return Batch(
            features,
            torch.full((self.size,), 2 * self.frames),
            [prompt] * self.size,
            [tokens(self.answer) for _ in range(self.size)],
            units,
        )


@dataclass(frozen=True)
class Exchange:
    """A spoken question and the answer to it, earlier in a dialogue."""

    audio: Path
    response: str


@dataclass(frozen=True)
class Row:
    audio: Path
    response: str
    units: tuple[int, ...]
    history: tuple[Exchange, ...] = ()


def read_rows(path: Path, num_units: int, need_units: bool, on_bad: str = "refuse") -> tuple[list[Row], list[Bad]]:
    """A training manifest: audio at 16 kHz, response and, for stage 2, units; history where a dialogue has one.

    See manifest.py for bad rows.
    """

    def earlier(row: dict, folder: Path) -> Exchange:
        audio = manifest.audio(row, "audio", folder, rate=wav.SAMPLE_RATE)
        return Exchange(audio, manifest.text(row, "response"))

    def parse(row: dict, folder: Path) -> Row:
        manifest.text(row, "instruction")
        found = manifest.units(row, "units", num_units) if need_units or row.get("units") else []
        if any(a == b for a, b in pairwise(found)):
            raise BadRow("units repeat a unit; they have to be merged.")
        return Row(
            manifest.audio(row, "audio", folder, rate=wav.SAMPLE_RATE),
            manifest.text(row, "response"),
            tuple(found),
            tuple(earlier(each, folder) for each in manifest.objects(row, "history")),
        )

    return manifest.read(path, parse, on_bad)


class ManifestBatches:
    """Rows in a new order every epoch; those of a batch are padded to the longest (or to 30 s, as published)."""

    def __init__(
        self,
        rows: Sequence[Row],
        tokenizer,
        shape: Shape,
        size: int,
        padded: bool,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.rows, self.tokenizer, self.shape, self.size = rows, tokenizer, shape, size
        self.padded, self.seed, self.rank, self.ranks = padded, seed, rank, ranks
        self.prompt = Prompt(shape.prompt_style, tokenizer)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.rows) // (self.size * self.ranks))

    def numbers(self, step: int) -> list[int]:
        """Which rows step `step` learns, here."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        whole = order[place * self.size * self.ranks : (place + 1) * self.size * self.ranks]
        own = whole[self.rank :: self.ranks]
        return own.tolist() or whole[:1].tolist()  # a short last batch: nobody stands idle while others wait for it

    def __call__(self, step: int) -> Batch:
        rows = [self.rows[i] for i in self.numbers(step)]
        fit = mel.pad_or_trim if self.padded else mel.pad_to_embedding
        spoken = [audio for row in rows for audio in (*(each.audio for each in row.history), row.audio)]
        features = [mel.log_mel(fit(wav.read(audio)), self.shape.encoder.num_mels) for audio in spoken]
        longest = max(each.shape[1] for each in features)
        end = self.tokenizer.eos_token_id
        return Batch(
            torch.stack([torch.nn.functional.pad(each, (0, longest - each.shape[1])) for each in features]),
            torch.tensor([each.shape[1] for each in features]),
            [self.prompt(self._conversation(row)) for row in rows],
            [[*self._tokens(row.response), end] for row in rows],
            [list(row.units) for row in rows],
        )

    def _conversation(self, row: Row) -> list[Utterance]:
        """As a session's memory has it: of speech only the place, of answers the tokens that were learnt for them."""
        said = Utterance("user", speech=np.zeros(0, np.float32))
        answers = [Utterance("assistant", token_ids=tuple(self._tokens(each.response))) for each in row.history]
        return [*(each for answer in answers for each in (said, answer)), said]

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids
