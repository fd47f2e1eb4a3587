"""The reference path: samples → text and units, one utterance at a time. Slow and obvious; the engine must equal it.

omni = checkpoint.load(directory)
for step in omni.answer([Utterance("user", speech=samples)]):
    print(step.text, step.units)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from omni.audio import mel
from omni.model import adaptors
from omni.model.adaptor import Adaptor
from omni.model.config import EncoderConfig, OmniConfig
from omni.model.ctc import Collapse
from omni.model.detokenizer import Detokenizer
from omni.model.encoder import Encoder
from omni.model.llm import Llama
from omni.model.prompt import SPEECH, Prompt, Utterance
from omni.model.sampling import GREEDY, Sampling, choose
from omni.model.unit_decoder import UnitDecoder


@dataclass(frozen=True)
class Step:
    """One token of the answer, the text and the units it added, and why it was the last one."""

    token_id: int
    text: str
    units: tuple[int, ...]
    finish: str | None = None  # "stop" or "length"


class Omni(nn.Module):
    """Encoder, adaptor, LLM and unit decoder of one checkpoint, with its tokenizer and prompt."""

    def __init__(self, config: OmniConfig, encoder: EncoderConfig, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.prompt = Prompt(config.prompt_style, tokenizer)
        self.encoder = Encoder(encoder)
        self.adaptor = Adaptor(config)
        self.adaptors: dict[str, Adaptor] = {}  # further ones by name, behind the same encoder
        self.llm = Llama(config.llm, config.vocab_size, config.tied_embeddings)
        self.unit_decoder = UnitDecoder(config.unit_decoder, config.llm.width, config.num_units, config.upsample)

    @property
    def device(self) -> torch.device:
        return self.llm.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.llm.embed_tokens.weight.dtype

    def mel(self, samples: np.ndarray) -> Tensor:
        """(S,) at 16 kHz → (n_mels, F) at 100 Hz: 3000 frames in padded mode, else as many as were said."""
        fit = mel.pad_or_trim if self.config.speech_input == "padded" else mel.pad_to_embedding
        return mel.log_mel(fit(samples).to(self.device), self.encoder.config.num_mels)

    def adaptor_named(self, name: str) -> Adaptor:
        """A further adaptor; the checkpoint's own where the name is empty. Raises UnknownAdaptor."""
        adaptors.check(name, self.adaptors)
        return self.adaptors[name] if name else self.adaptor

    @torch.inference_mode()
    def speech_embeddings(self, samples: np.ndarray, adaptor: str = "") -> Tensor:
        """(S,) at 16 kHz → (T, D) at 10 Hz; T is 300 in padded mode."""
        frames = self.encoder(self.mel(samples)[None].to(self.dtype))
        return self.adaptor_named(adaptor)(frames)[0]

    @torch.inference_mode()
    def prompt_embeds(self, conversation: Sequence[Utterance], adaptor: str = "") -> Tensor:
        """A conversation → (P, D): token embeddings with every utterance's speech embeddings in its place."""
        ids = self.prompt(conversation)
        spoken = [self.speech_embeddings(each.speech, adaptor) for each in conversation if each.speech is not None]
        return self.splice(ids, spoken)

    def splice(self, ids: Sequence[int], spoken: Sequence[Tensor]) -> Tensor:
        """Prompt ids and speech embeddings (T, D) in order → (P, D)."""
        waiting = iter(spoken)
        parts, run = [], []
        for token_id in [*ids, None]:
            if token_id is not None and token_id != SPEECH:
                run.append(token_id)
                continue
            if run:
                parts.append(self.llm.embed(torch.tensor(run, device=self.device)))
            if token_id == SPEECH:
                parts.append(next(waiting))
            run = []
        return torch.cat(parts)

    def answer(
        self,
        conversation: Sequence[Utterance],
        sampling: Sampling = GREEDY,
        forced: Sequence[int] = (),
        adaptor: str = "",
    ) -> Iterator[Step]:
        """Answer the conversation, a Step per token. `forced` tokens are fed instead of chosen (see recovery)."""
        yield from self.generate(self.prompt_embeds(conversation, adaptor), sampling, forced)

    @torch.inference_mode()
    def generate(self, embeds: Tensor, sampling: Sampling = GREEDY, forced: Sequence[int] = ()) -> Iterator[Step]:
        """Prompt (P, D) → Steps. The unit decoder runs over all tokens so far at every token: obvious, quadratic."""
        cache = self.llm.new_cache()
        detokenize = Detokenizer(self.tokenizer)
        collapse = Collapse(self.config.blank)
        hidden = self.llm(embeds[None], cache=cache)[:, -1:]  # (1, 1, D), predicts token 0
        spoken_from = hidden  # (1, i + 1, D): the states that predicted tokens 0 … i
        limit = sampling.max_new_tokens
        for i in range(limit):
            token_id = forced[i] if i < len(forced) else choose(self.llm.logits(hidden)[0, 0], sampling, i)
            classes = self.unit_decoder(spoken_from)[0, i * self.config.upsample :].argmax(-1)
            stopped = token_id in self.config.eos_token_ids
            finish = "stop" if stopped else "length" if i + 1 == limit else None
            text = detokenize(token_id) + (detokenize.finish() if finish else "")
            yield Step(token_id, text, tuple(collapse(classes.tolist())), finish)
            if stopped:
                return
            position = torch.tensor([[embeds.shape[0] + i]], device=self.device)
            hidden = self.llm(self.llm.embed(torch.tensor([[token_id]], device=self.device)), position, cache)
            spoken_from = torch.cat((spoken_from, hidden), dim=1)
