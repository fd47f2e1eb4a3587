"""One step on the device: prompts read on, then one token and its 25 unit positions for every running row.

Knows the model and the slots; not who waits, nor for how long. What it gives stays on the device until `Result.fetch`,
so that the next step can be launched before the last one is read.
"""

from collections.abc import Hashable
from collections.abc import Sequence as Several

import numpy as np
import torch
from torch import Tensor, nn

from omni.audio import mel
from omni.engine import hearing, sampler
from omni.engine.decoding import Decoding
from omni.engine.feeding import feed
from omni.engine.hearing import Hearing
from omni.engine.prefixes import Place
from omni.engine.projection import Projecting
from omni.engine.scheduler import Piece
from omni.engine.sequence import Sequence, SpeechTooLong, Spoken, UnknownAdaptor
from omni.engine.slots import Ragged, Slots
from omni.engine.speech import Speech
from omni.engine.stack import Stack
from omni.model import adaptors
from omni.model.omni import Omni
from omni.model.prompt import SPEECH, Utterance

STATES_AT_ONCE = 16  # of forced tokens, through the unit decoder: 400 positions


class Result:
    """One token for each sequence, or several (forced ones) for a single sequence.

    tokens (n,), classes (n, 25), finite (n,) travel to the host in one copy, which nobody waits for before `fetch`.
    """

    def __init__(self, sequences: list[Sequence], tokens: Tensor, classes: Tensor, finite: Tensor) -> None:
        self.sequences, self.num_tokens = sequences, len(tokens) // len(sequences)  # of each
        packed = torch.cat((tokens[:, None], finite[:, None].long(), classes), dim=1)  # (n, 27)
        self._copied = None
        self._host = packed
        if packed.is_cuda:
            self._host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True).copy_(packed, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def fetch(self) -> list[tuple[Sequence, list[int], list[list[int]], bool]]:
        """On the host: each sequence with its tokens, raw classes per token, and whether all was finite."""
        if self._copied is not None:
            self._copied.synchronize()
        rows = self._host.tolist()
        if len(self.sequences) == 1:
            tokens, classes = [row[0] for row in rows], [row[2:] for row in rows]
            return [(self.sequences[0], tokens, classes, all(row[1] for row in rows))]
        return [(each, row[:1], [row[2:]], bool(row[1])) for each, row in zip(self.sequences, rows, strict=True)]


class Runner:
    """`fixed_rows`: steps of up to so many rows come in few shapes; 0: in whatever shape they have.

    `calls` and `rows` of `hearing`, `text` and `speech.rest` count the work done.
    """

    def __init__(
        self,
        omni: Omni,
        num_slots: int,
        max_tokens: int,
        max_answer: int,
        project: Projecting,
        kept_speech: int = 2**28,
        fixed_rows: int = 0,
    ) -> None:
        self.omni, self.device, config = omni, omni.device, omni.config
        tied = omni.llm.lm_head is None
        self.hearing = Hearing(omni, kept_speech)
        self.text = Stack(omni.llm.layers, config.llm, max_tokens, project)
        self.head = project([omni.llm.lm_head or embedding_as_linear(omni.llm.embed_tokens)], keep=tied)
        self.speech = Speech(omni.unit_decoder, num_slots, max_answer, project)
        self.slots = Slots(config.llm, num_slots, max_tokens, omni.llm.norm.weight)
        self.last_token = torch.zeros(num_slots, dtype=torch.int64, device=self.device)
        self.decoding: Decoding | None = None
        if fixed_rows:
            sizes, recorded = (fixed_rows, max_tokens, max_answer), self.device.type == "cuda"
            self.decoding = Decoding(self._fixed_step, self.device, *sizes, recorded)

    def read(self, sequence: Sequence) -> None:
        """A new sequence: prompt ids, and how long the prompt will be. No work on the device yet."""
        try:
            adaptors.check(sequence.adaptor, self.omni.adaptors)
        except adaptors.UnknownAdaptor as exc:
            raise UnknownAdaptor(str(exc)) from exc
        said = [each.speech for each in sequence.conversation if each.speech is not None]
        if any(len(samples) > mel.N_SAMPLES for samples in said):
            raise SpeechTooLong(f"An utterance is longer than {mel.WINDOW_SECONDS} s.")
        sequence.prompt_ids = self._prompt(sequence)
        called = [(hearing.key(samples, sequence.adaptor), self.hearing.length(samples)) for samples in said]
        sequence.keys, sequence.spoken = _keys(sequence.prompt_ids, called)
        sequence.prompt_length = len(sequence.keys)
        kept = {each.key: self.hearing.recall(each.key) for each in sequence.spoken}
        sequence.heard = {name: embeddings for name, embeddings in kept.items() if embeddings is not None}
        sequence.said = {name: samples for (name, _), samples in zip(called, said, strict=True)}

    def _prompt(self, sequence: Sequence) -> list[int]:
        """Who reads ahead reads up to where the next question's speech will be."""
        if not sequence.reads_ahead:
            return self.omni.prompt(sequence.conversation)
        ids = self.omni.prompt((*sequence.conversation, Utterance("user", speech=np.zeros(0, np.float32))))
        return ids[: len(ids) - 1 - ids[::-1].index(SPEECH)]

    def reuse(self, place: Place) -> None:
        """What another slot remembers of a prompt, into the newcomer's."""
        if place.source is not None and place.source != place.slot:
            self.slots.copy(place.source, place.slot, place.length)

    def hear(self, chosen: Several[tuple[Sequence, Spoken]]) -> None:
        """Encode these utterances, together where they are of nearly equal length."""
        named = {spoken.key: sequence.adaptor for sequence, spoken in chosen}
        heard = self.hearing({spoken.key: sequence.said[spoken.key] for sequence, spoken in chosen}, named)
        for sequence, spoken in chosen:
            sequence.heard[spoken.key] = heard[spoken.key]

    def embed(self, sequence: Sequence) -> None:
        """Everything it has to prefill, (num_to_prefill, D), once all its speech is heard."""
        spoken = [
            self._nothing(each) if each.stop <= sequence.num_reused else sequence.heard[each.key]
            for each in sequence.spoken
        ]
        embeds = self.omni.splice(sequence.prompt_ids, spoken)
        forced = feed(sequence.forced[:-1], self.device)
        sequence.embeds = torch.cat((embeds, self.omni.llm.embed(forced)))
        sequence.heard, sequence.said = {}, {}

    def prefill(self, pieces: Several[Piece]) -> list[Result]:
        """Read pieces of several prompts in one call, as each would be read alone: all but attention is row by row.

        From a prompt's last position on, every hidden state speaks a token: those that are forced, or the first one.
        """
        parts = [self.slots.rows([each.slot], [each.start], each.stop - each.start) for each in pieces]
        rows = parts[0] if len(parts) == 1 else Ragged(parts)
        x = torch.cat([each.sequence.embeds[each.start : each.stop] for each in pieces])
        x = self.text(x[None], rows.positions, rows)  # (1, T, D), T of all pieces together
        results, newcomers, states = [], [], []
        for piece, own in zip(pieces, x.split([each.num_new for each in parts], dim=1), strict=True):
            sequence, last = piece.sequence, piece.sequence.prompt_length - 1
            if sequence.reads_ahead:
                continue  # it asks nothing
            own = own[:, max(last - piece.start, 0) :]  # (1, n, D)
            if own.shape[1] and sequence.forced:
                results.append(self._speak(sequence, self.omni.llm.norm(own), piece.stop - own.shape[1] - last))
            elif own.shape[1]:
                newcomers.append(sequence)
                states.append(own)
        if newcomers:
            slots = [each.slot for each in newcomers if each.slot is not None]
            results.append(self._next(newcomers, slots, self.omni.llm.norm(torch.cat(states)), [0] * len(newcomers)))
        return results

    def decode(self, sequences: Several[Sequence]) -> Result:
        """One step for all rows: the last token in, the next one and its units out."""
        slots = [each.slot for each in sequences if each.slot is not None]
        steps = [each.num_launched for each in sequences]
        starts = [each.prompt_length + step - 1 for each, step in zip(sequences, steps, strict=True)]
        if self.decoding is not None:
            logits, classes, finite = self.decoding(slots, starts, steps)
            tokens = sampler.choose(logits, [each.sampling for each in sequences], steps)
            self.last_token[feed(slots, self.device)] = tokens
            return Result(list(sequences), tokens, classes, finite)
        rows = self.slots.rows(slots, starts, 1)
        embeds = self.omni.llm.embed(self.last_token[rows.index])[:, None]
        return self._next(sequences, slots, self.omni.llm.norm(self.text(embeds, rows.positions, rows)), steps)

    def _fixed_step(self, fed: Tensor, length: int, num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """(slots, starts, steps) (3, B) → logits (B, V), classes (B, 25), finite (B,): decode without the choice."""
        index, starts, steps = fed
        rows = self.slots.fixed(index, starts, 1, length)
        embeds = self.omni.llm.embed(self.last_token[index])[:, None]
        hidden = self.omni.llm.norm(self.text(embeds, rows.positions, rows))
        logits = self.head(hidden[:, 0])
        spoken = self.speech.fixed(index, hidden, steps, num_tokens)[:, 0]  # (B, 25, classes)
        return logits, spoken.argmax(-1), spoken.sum((-1, -2)).isfinite() & logits.sum(-1).isfinite()

    def forget(self, sequence: Sequence) -> None:
        """It went wrong: nothing of it may reach the next one in its slot, or who says the same."""
        if sequence.slot is not None:
            self.slots.clear(sequence.slot)
            self.speech.forget(sequence.slot)
        for each in sequence.spoken:
            self.hearing.forget(each.key)

    def _next(self, sequences: Several[Sequence], slots: list[int], states: Tensor, steps: list[int]) -> Result:
        """States (B, 1, D) → each row's next token, the steps[b]-th of its answer, and its units."""
        logits = self.head(states[:, 0])
        tokens = sampler.choose(logits, [each.sampling for each in sequences], steps)
        self.last_token[feed(slots, self.device)] = tokens
        classes, finite = self._units(slots, states, steps)
        return Result(list(sequences), tokens, classes[:, 0], finite[:, 0] & logits.sum(-1).isfinite())

    def _nothing(self, spoken: Spoken) -> Tensor:
        """In the place of speech embeddings that are not looked at: a slot remembers what came of them."""
        shape = spoken.length, self.omni.config.llm.width
        return torch.zeros(shape, dtype=self.omni.dtype, device=self.device)

    def _speak(self, sequence: Sequence, states: Tensor, first: int) -> Result:
        """States (1, n, D) of tokens first … first + n - 1: all of them forced, or all but the last."""
        assert sequence.slot is not None
        parts = [
            self._units([sequence.slot], states[:, i : i + STATES_AT_ONCE], [first + i])
            for i in range(0, states.shape[1], STATES_AT_ONCE)
        ]
        classes, finite = (torch.cat(each, dim=1)[0] for each in zip(*parts, strict=True))
        forced = sequence.forced[first : first + states.shape[1]]
        tokens = feed(forced, self.device)
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


def _keys(prompt_ids: list[int], called: list[tuple[bytes, int]]) -> tuple[list[Hashable], list[Spoken]]:
    """What each position of a prompt is, a token's id or a part of an utterance; and where the utterances are."""
    waiting = iter(called)
    keys: list[Hashable] = []
    spoken = []
    for token_id in prompt_ids:
        if token_id == SPEECH:
            name, length = next(waiting)
            spoken.append(Spoken(name, len(keys), len(keys) + length))
            keys += [(name, i) for i in range(length)]
        else:
            keys.append(token_id)
    return keys, spoken
