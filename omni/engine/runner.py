"""One step on the device: prompts read on, then one token and its 25 unit positions for every running row.

Knows the model and the slots; not who waits, nor for how long. What it gives stays on the device until `Result.fetch`,
so that the next step can be launched before the last one is read.
"""

from collections.abc import Sequence as Several
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from omni.audio import mel
from omni.engine import sampler
from omni.engine.scheduler import Piece
from omni.engine.sequence import Sequence
from omni.engine.slots import Slots
from omni.engine.speech import Speech
from omni.engine.stack import Stack, project
from omni.model.omni import Omni

STATES_AT_ONCE = 16  # of forced tokens, through the unit decoder: 400 positions


@dataclass(frozen=True)
class Result:
    """One token for each sequence, or several (forced ones) for a single sequence.

    tokens (n,), classes (n, 25), finite (n,): on the device.
    """

    sequences: list[Sequence]
    tokens: Tensor
    classes: Tensor
    finite: Tensor

    def fetch(self) -> list[tuple[Sequence, list[int], list[list[int]], bool]]:
        """On the host: each sequence with its tokens, raw classes per token, and whether all was finite."""
        tokens, classes, finite = self.tokens.tolist(), self.classes.tolist(), self.finite.tolist()
        if len(self.sequences) == 1:
            return [(self.sequences[0], tokens, classes, all(finite))]
        return [(each, [tokens[i]], [classes[i]], finite[i]) for i, each in enumerate(self.sequences)]


class Runner:
    """`calls` and `rows` of `text` and `speech.rest` count the work done."""

    def __init__(self, omni: Omni, num_slots: int, max_tokens: int, max_answer: int, weights: str = "float") -> None:
        self.omni, self.device, config = omni, omni.device, omni.config
        self.text = Stack(omni.llm.layers, config.llm, max_tokens, weights)
        self.head = project([omni.llm.lm_head or embedding_as_linear(omni.llm.embed_tokens)], weights)
        self.speech = Speech(omni.unit_decoder, num_slots, max_answer, weights)
        self.slots = Slots(config.llm, num_slots, max_tokens, self.device, omni.dtype)
        self.last_token = torch.zeros(num_slots, dtype=torch.int64, device=self.device)

    def read(self, sequence: Sequence) -> None:
        """A new sequence: prompt ids, and how long the prompt will be. No work on the device yet."""
        config = self.omni.config
        fit = mel.pad_or_trim if config.speech_input == "padded" else mel.pad_to_embedding
        spoken = [each.speech for each in sequence.conversation if each.speech is not None]
        sequence.prompt_ids = self.omni.prompt(sequence.conversation)
        embeddings = sum(len(fit(samples)) // mel.SAMPLES_PER_EMBEDDING for samples in spoken)
        sequence.prompt_length = len(sequence.prompt_ids) - len(spoken) + embeddings

    def embed(self, sequence: Sequence) -> None:
        """Everything it has to prefill, (num_to_prefill, D): here its speech is encoded."""
        spoken = [self.omni.speech_embeddings(u.speech) for u in sequence.conversation if u.speech is not None]
        embeds = self.omni.splice(sequence.prompt_ids, spoken)
        assert len(embeds) == sequence.prompt_length, "the prompt is not as long as its samples say"
        forced = torch.tensor(sequence.forced[:-1], dtype=torch.int64, device=self.device)
        sequence.embeds = torch.cat((embeds, self.omni.llm.embed(forced)))

    def prefill(self, piece: Piece) -> Result | None:
        """Read a piece of a prompt. From the prompt's last position on, every hidden state speaks a token."""
        sequence = piece.sequence
        assert sequence.slot is not None
        rows = self.slots.rows([sequence.slot], [piece.start], piece.stop - piece.start)
        x = self.text(sequence.embeds[None, piece.start : piece.stop], rows.positions, rows)
        x = x[:, max(sequence.prompt_length - 1 - piece.start, 0) :]  # (1, n, D)
        if x.shape[1] == 0:
            return None
        first = piece.stop - x.shape[1] - (sequence.prompt_length - 1)
        return self._speak(sequence, self.omni.llm.norm(x), first)

    def decode(self, sequences: Several[Sequence]) -> Result:
        """One step for all rows: the last token in, the next one and its units out."""
        slots = [each.slot for each in sequences if each.slot is not None]
        steps = [each.num_launched for each in sequences]
        starts = [each.prompt_length + step - 1 for each, step in zip(sequences, steps, strict=True)]
        rows = self.slots.rows(slots, starts, 1)
        embeds = self.omni.llm.embed(self.last_token[rows.index])[:, None]
        hidden = self.omni.llm.norm(self.text(embeds, rows.positions, rows))
        logits = self.head(hidden[:, 0])
        tokens = sampler.choose(logits, [each.sampling for each in sequences], steps)
        self.last_token[rows.index] = tokens
        classes, finite = self._units(slots, hidden, steps)
        return Result(list(sequences), tokens, classes[:, 0], finite[:, 0] & logits.sum(-1).isfinite())

    def forget(self, slot: int) -> None:
        """A row went wrong: nothing of it may reach the next one in this slot."""
        self.slots.clear(slot)
        self.speech.forget(slot)

    def _speak(self, sequence: Sequence, states: Tensor, first: int) -> Result:
        """States (1, n, D) of tokens first … first + n - 1: all of them forced, or all but the last."""
        assert sequence.slot is not None
        parts = [
            self._units([sequence.slot], states[:, i : i + STATES_AT_ONCE], [first + i])
            for i in range(0, states.shape[1], STATES_AT_ONCE)
        ]
        classes, finite = (torch.cat(each, dim=1)[0] for each in zip(*parts, strict=True))
        forced = sequence.forced[first : first + states.shape[1]]
        tokens = torch.tensor(forced, dtype=torch.int64, device=self.device)
        if len(forced) < states.shape[1]:
            logits = self.head(states[:, -1])
            tokens = torch.cat((tokens, sampler.choose(logits, [sequence.sampling], [first + len(forced)])))
            finite = finite & logits.sum().isfinite()
        self.last_token[sequence.slot] = tokens[-1]
        return Result([sequence], tokens, classes, finite)

    def _units(self, slots: list[int], states: Tensor, first_tokens: list[int]) -> tuple[Tensor, Tensor]:
        """States (B, n, D) → classes (B, n, 25), and whether all was finite (B, n)."""
        logits = self.speech(slots, states, first_tokens)
        return logits.argmax(-1), logits.sum((-1, -2)).isfinite()


def embedding_as_linear(embedding: nn.Embedding) -> nn.Linear:
    """The output layer of a checkpoint with tied embeddings."""
    layer = nn.Linear(1, 1, bias=False, device="meta")
    layer.weight = embedding.weight
    return layer
