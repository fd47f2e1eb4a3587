"""A checkpoint that is asked one thing after the other.

    talker = Talker.load("mini", None, "cpu", max_tokens=64)
    reply = talker(Utterance("user", speech=samples))
    reply = talker([Utterance("user", speech=samples), talker.turn(reply), Utterance("user", speech=more)])

Greedy, through the reference parts. Knows no score.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from omni import checkpoints
from omni.model import checkpoint
from omni.model.ctc import Collapse, collapse
from omni.model.omni import Omni
from omni.model.prompt import Utterance
from omni.vocoder import checkpoint as vocoder_checkpoint
from omni.vocoder.durations import UnitVocoder
from omni.vocoder.render import offline

MAX_TOKENS = 64  # an answer that is longer has lost its way


@dataclass(frozen=True)
class Reply:
    text: str
    token_ids: tuple[int, ...]
    units: tuple[int, ...]
    samples: np.ndarray  # (S,) the spoken answer, empty where no sound was asked for
    seconds: float  # that it took


class Talker:
    def __init__(self, omni: Omni, vocoder: UnitVocoder, max_tokens: int = MAX_TOKENS, adaptor: str = "") -> None:
        self.omni, self.vocoder, self.max_tokens, self.adaptor = omni, vocoder, max_tokens, adaptor

    @classmethod
    def load(
        cls,
        model: str,
        vocoder: str | None,
        device: str,
        max_tokens: int,
        dtype: torch.dtype = torch.float32,
        adaptor: str = "",
    ) -> "Talker":
        found = checkpoints.resolve(model, vocoder)
        omni = checkpoint.load(found.model, device, dtype)
        return cls(omni, vocoder_checkpoint.load(found.vocoder, device), max_tokens, adaptor)

    @torch.inference_mode()
    def __call__(self, asked: Utterance | Sequence[Utterance], aloud: bool = True) -> Reply:
        """One question, or a conversation that ends with one → the whole answer. The unit decoder runs once."""
        start = time.perf_counter()
        token_ids, states = self._write(self._embeds(asked))
        text = self.omni.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str), "one list of ids gives one text"
        units: list[int] = []
        samples = np.zeros(0, np.float32)
        if aloud:
            classes = self.omni.unit_decoder(states)[0].argmax(-1).tolist()
            units = collapse(classes, self.omni.config.blank)
            samples = offline(self.vocoder, units)
        return Reply(text.strip(), tuple(token_ids), tuple(units), samples, time.perf_counter() - start)

    def turn(self, answer: Reply | str) -> Utterance:
        """An answer, or one that was not this talker's, as a session remembers it: its tokens without the end token."""
        if isinstance(answer, str):
            return Utterance(
                "assistant", token_ids=tuple(self.omni.tokenizer(answer, add_special_tokens=False).input_ids)
            )
        ends = answer.token_ids[-1:] and answer.token_ids[-1] in self.omni.config.eos_token_ids
        return Utterance("assistant", token_ids=answer.token_ids[:-1] if ends else answer.token_ids)

    @torch.inference_mode()
    def stream(self, asked: Utterance | Sequence[Utterance]) -> Iterator[tuple[int, list[int]]]:
        """Every token as it comes, and the units it adds: incremental, as a model worker does it."""
        decoder, collapse_more = self.omni.unit_decoder, Collapse(self.omni.config.blank)
        cache = decoder.new_cache()
        for i, (token_id, state) in enumerate(self._steps(self._embeds(asked))):
            yield token_id, collapse_more(decoder(state, i, cache)[0].argmax(-1).tolist())

    def _embeds(self, asked: Utterance | Sequence[Utterance]) -> Tensor:
        """What was asked → the prompt (P, D), its speech heard by this talker's adaptor."""
        return self.omni.prompt_embeds([asked] if isinstance(asked, Utterance) else asked, self.adaptor)

    def _write(self, embeds: Tensor) -> tuple[list[int], Tensor]:
        """Prompt (P, D) → the greedy answer's tokens, and the states (1, T, D) that predicted them."""
        token_ids, states = zip(*self._steps(embeds), strict=True)
        return list(token_ids), torch.cat(states, dim=1)

    def _steps(self, embeds: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Prompt (P, D) → each token of the greedy answer, with the state (1, 1, D) that predicted it."""
        llm, cache = self.omni.llm, self.omni.llm.new_cache()
        state = llm(embeds[None], cache=cache)[:, -1:]
        for i in range(self.max_tokens):
            token_id = int(llm.logits(state)[0, 0].argmax())
            yield token_id, state
            if token_id in self.omni.config.eos_token_ids or i + 1 == self.max_tokens:
                return
            position = torch.tensor([[len(embeds) + i]], device=embeds.device)
            state = llm(llm.embed(torch.tensor([[token_id]], device=embeds.device)), position, cache)
