"""One step on the device: prompts read on, then one token and its 25 unit positions for every running row.

Knows the model and the slots; not who waits, nor for how long. What it gives stays on the device until `Result.fetch`,
so that the next step can be launched before the last one is read.
"""

from collections.abc import Sequence as Several
from dataclasses import dataclass

import torch
from torch import Tensor

from omni.audio import mel
from omni.engine import sampler
from omni.engine.scheduler import Piece
from omni.engine.sequence import Sequence
from omni.engine.slots import Slots
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
    def __init__(self, omni: Omni, num_slots: int, max_tokens: int, max_answer: int) -> None:
        self.omni, self.upsample = omni, omni.config.upsample
        self.device, self.dtype = omni.device, omni.dtype
        self.text = Slots(omni.config.llm, num_slots, max_tokens, self.device, self.dtype)
        self.speech = Slots(omni.config.unit_decoder, num_slots, max_answer * self.upsample, self.device, self.dtype)
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
        """Read a piece of a prompt. Past the prompt's last position every hidden state speaks one token."""
        sequence = piece.sequence
        assert sequence.slot is not None
        rows = self.text.rows([sequence.slot], [piece.start], piece.stop - piece.start)
        hidden = self.omni.llm(sequence.embeds[None, piece.start : piece.stop], rows.positions, rows)
        states = hidden[:, max(sequence.prompt_length - 1 - piece.start, 0) :]  # (1, n, D)
        if states.shape[1] == 0:
            return None
        first = piece.stop - states.shape[1] - (sequence.prompt_length - 1)
        return self._speak_forced(sequence, states, first)

    def decode(self, sequences: Several[Sequence]) -> Result:
        """One step for all rows: the last token in, the next one and its units out."""
        slots = [each.slot for each in sequences if each.slot is not None]
        steps = [each.num_launched for each in sequences]
        starts = [each.prompt_length + step - 1 for each, step in zip(sequences, steps, strict=True)]
        rows = self.text.rows(slots, starts, 1)
        hidden = self.omni.llm(self.omni.llm.embed(self.last_token[rows.index])[:, None], rows.positions, rows)
        classes, finite = self._units(slots, hidden, steps)
        logits = self.omni.llm.logits(hidden[:, 0])
        tokens = sampler.choose(logits, [each.sampling for each in sequences], steps)
        self.last_token[rows.index] = tokens
        return Result(list(sequences), tokens, classes[:, 0], finite[:, 0] & logits.sum(-1).isfinite())

    def forget(self, slot: int) -> None:
        """A row went wrong: nothing of it may reach the next one in this slot."""
        self.text.clear(slot)
        self.speech.clear(slot)

    def _speak_forced(self, sequence: Sequence, states: Tensor, first: int) -> Result:
        """States (1, n, D) of tokens first … first + n - 1, of which all are forced, or the last one is chosen."""
        assert sequence.slot is not None
        parts = [
            self._units([sequence.slot], states[:, i : i + STATES_AT_ONCE], [first + i])
            for i in range(0, states.shape[1], STATES_AT_ONCE)
        ]
        known = list(sequence.forced[first : first + states.shape[1]])
        tokens = torch.tensor(known, dtype=torch.int64, device=self.device)
        finite = torch.cat([part[1][0] for part in parts])
        if len(known) < states.shape[1]:
            logits = self.omni.llm.logits(states[:, -1])
            tokens = torch.cat((tokens, sampler.choose(logits, [sequence.sampling], [first + len(known)])))
            finite = finite & logits.sum().isfinite()
        self.last_token[sequence.slot] = tokens[-1]
        return Result([sequence], tokens, torch.cat([part[0][0] for part in parts]), finite)

    def _units(self, slots: list[int], states: Tensor, first_tokens: list[int]) -> tuple[Tensor, Tensor]:
        """States (B, n, D) → classes (B, n, 25) and whether they are finite (B, n)."""
        B, n, _ = states.shape
        decoder = self.omni.unit_decoder
        rows = self.speech.rows(slots, [token * self.upsample for token in first_tokens], n * self.upsample)
        x = decoder.input_proj(states).repeat_interleave(self.upsample, dim=1)
        logits = decoder.output_proj(decoder.run(x, rows.positions, rows))  # (B, 25·n, classes)
        logits = logits.view(B, n, self.upsample, -1)
        return logits.argmax(-1), logits.sum((-1, -2)).isfinite()
