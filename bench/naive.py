"""The published serving path, rewritten: what omni is measured against. One request at a time, nothing kept between.

    naive = Naive(omni, vocoder)
    for piece in naive.answer(samples, limit=64):
        piece.text, piece.units, piece.pcm

It does what ictnlp/LLaMA-Omni does (omni_speech/serve, generation.py; at c63fd72), with transformers' own Llama layers:

    worker   pads every question to 30 s; decodes eagerly with a cache that grows by concatenation, keeping every
             layer's hidden states; runs the unit decoder over the whole answer at every token, and once more at the
             end; copies all classes to the host and collapses them in Python
    page     waits for `chunk` new units (Ω) and vocodes them alone, as if they were an answer of their own

Nothing is made slower than it was. Left out, because they are not the method: JSON and HTTP between the processes, the
controller, audio as lists of floats, the whole sound sent again with every chunk. `as_shipped` adds two costs that the
published server has and the paper's latency lacks: the slow Python tokenizer that reads all units again at each unit,
and the page's pause of 30 ms between two messages. Left out in its favour: the published worker often sends a step's
units one message late.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertTokenizerLegacy, DynamicCache, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel, LlamaRotaryEmbedding

from bench.pieces import Piece
from bench.traces import Trace
from omni.audio import mel
from omni.audio.wav import to_pcm16
from omni.model.config import BlockConfig
from omni.model.ctc import collapse
from omni.model.detokenizer import Detokenizer
from omni.model.llm import Llama
from omni.model.omni import Omni
from omni.model.prompt import Utterance
from omni.model.unit_decoder import UnitDecoder
from omni.vocoder.durations import UnitVocoder
from omni.vocoder.render import offline

CHUNK = 10  # Ω of the published latency
MESSAGE_PAUSE = 0.03  # seconds; the published page sleeps after each message


@dataclass
class Work:
    """Counted, for tests and tables: machines are noisy, counts are not."""

    text_rows: int = 0  # positions through the LLM
    unit_rows: int = 0  # positions through the unit decoder
    mel_frames: int = 0  # through the encoder


class Naive:
    def __init__(
        self,
        omni: Omni,
        vocoder: UnitVocoder,
        chunk: int = CHUNK,
        padded: bool = True,
        as_shipped: bool = False,
    ) -> None:
        self.omni, self.vocoder, self.chunk, self.padded = omni, vocoder, chunk, padded
        self.llm = _shared(omni.llm, omni.config.vocab_size)
        self.unit_decoder = _Generator(omni.unit_decoder)
        self.as_shipped = as_shipped
        self.unit_tokenizer = _unit_tokenizer(omni.config.num_units) if as_shipped else None
        self.work = Work()

    def answer(
        self, samples: np.ndarray, limit: int, forced: Sequence[int] = (), trace: Trace | None = None
    ) -> Iterator[Piece]:
        """The page: follow the worker's messages, vocode each `chunk` new units by themselves, the rest at the end."""
        vocoded, heard_at = 0, -float("inf")
        for message in self.generate(samples, limit, forced, trace):
            if self.as_shipped:
                time.sleep(max(0.0, heard_at + MESSAGE_PAUSE - time.monotonic()))
                heard_at = time.monotonic()
            waiting = message.units[vocoded:]
            pcm = b""
            if len(waiting) >= self.chunk or (message.finish and waiting):
                vocoded = len(message.units)
                pcm = self.vocode(waiting)
            yield Piece(message.token_ids, message.text, message.units[message.units_before :], pcm, message.finish)

    def generate_pieces(self, samples: np.ndarray, limit: int, forced: Sequence[int] = ()) -> Iterator[Piece]:
        """The worker alone: no sound."""
        for message in self.generate(samples, limit, forced):
            yield Piece(message.token_ids, message.text, message.units[message.units_before :], b"", message.finish)

    def vocode(self, units: Sequence[int]) -> bytes:
        return to_pcm16(offline(self.vocoder, units))

    @torch.inference_mode()
    def generate(
        self, samples: np.ndarray, limit: int, forced: Sequence[int] = (), trace: Trace | None = None
    ) -> Iterator["Message"]:
        """The worker: a message per token. `forced` tokens are said instead of the chosen ones, at the same cost."""
        config, detokenize = self.omni.config, Detokenizer(self.omni.tokenizer)
        step = self.prefill(self.embed(samples))
        units: tuple[int, ...] = ()
        for i in range(limit):
            token_id = int(self.omni.llm.logits(step.last)[0, 0].argmax())
            token_id = forced[i] if i < len(forced) else token_id
            said = len(units)
            units = self.units(step) if trace is None else self.units(step) and trace.until(i)
            self._stream(units[said:], units)
            stopped = token_id in config.eos_token_ids
            finish = "stop" if stopped else "length" if i + 1 == limit else None
            if finish:
                self.units(step)  # as published: once more over everything
            text = detokenize(token_id) + (detokenize.finish() if finish else "")
            yield Message((token_id,), text, units, said, finish)
            if finish:
                return
            step = self.decode(token_id, step)

    def embed(self, samples: np.ndarray) -> Tensor:
        """A question → (P, D): 30 s of it, however short it is."""
        fit = mel.pad_or_trim if self.padded else mel.pad_to_embedding
        frames = self.mel(fit(samples))
        self.work.mel_frames += frames.shape[-1]
        encoded = self.omni.encoder(frames[None].to(self.omni.device, self.omni.dtype))
        ids = self.omni.prompt([Utterance("user", speech=samples)])
        return self.omni.splice(ids, [self.omni.adaptor(encoded)[0]])

    def mel(self, samples: Tensor) -> Tensor:
        return mel.log_mel(samples, self.omni.encoder.config.num_mels)

    def prefill(self, embeds: Tensor) -> "Step":
        return self._run(embeds[None], DynamicCache(config=self.llm.config), ())

    def decode(self, token_id: int, step: "Step") -> "Step":
        ids = torch.tensor([[token_id]], device=self.omni.device)
        return self._run(self.omni.llm.embed(ids), step.cache, step.kept)

    def units(self, step: "Step") -> tuple[int, ...]:
        """All units so far, from nothing but the hidden states."""
        states = torch.cat([hidden[-1][:, -1:] for hidden in step.kept], dim=1)  # (1, tokens, D)
        self.work.unit_rows += states.shape[1] * self.omni.config.upsample
        classes = self.unit_decoder(states)[0].float().log_softmax(-1).argmax(-1)
        return tuple(collapse(classes.tolist(), self.omni.config.blank))

    def _run(self, embeds: Tensor, cache: DynamicCache, kept: tuple) -> "Step":
        self.work.text_rows += embeds.shape[1]
        out = self.llm(inputs_embeds=embeds, past_key_values=cache, use_cache=True, output_hidden_states=True)
        return Step(out.last_hidden_state[:, -1:], cache, (*kept, out.hidden_states))

    def _stream(self, new: Sequence[int], units: Sequence[int]) -> None:
        """As shipped, each new unit has the whole list read again by a tokenizer in Python; nobody sees the text."""
        if self.unit_tokenizer is not None:
            for i in range(len(units) - len(new), len(units)):
                self.unit_tokenizer.decode(list(units[: i + 1]))


@dataclass(frozen=True)
class Step:
    """last (1, 1, D) predicts the next token; kept: every layer's states of the prompt and of each token so far."""

    last: Tensor
    cache: DynamicCache
    kept: tuple


@dataclass(frozen=True)
class Message:
    """What the published worker sends per token: all units so far, and here the text's new part."""

    token_ids: tuple[int, ...]
    text: str
    units: tuple[int, ...]
    units_before: int  # of them, in the message before
    finish: str | None


class _Generator(nn.Module):
    """The published SpeechGeneratorCTC without a cache: (1, T, D) → logits (1, 25·T, classes)."""

    def __init__(self, decoder: UnitDecoder) -> None:
        super().__init__()
        config = _hf_config(decoder.config, vocab_size=1)
        with torch.device("meta"):
            self.layers = nn.ModuleList(LlamaDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.layers.load_state_dict(decoder.layers.state_dict(), assign=True)
        self.rotary = LlamaRotaryEmbedding(config).to(decoder.input_proj.weight.device)
        self.upsample, self.input_proj, self.output_proj = decoder.upsample, decoder.input_proj, decoder.output_proj

    def forward(self, states: Tensor) -> Tensor:
        x = self.input_proj(states.repeat_interleave(self.upsample, dim=1))
        positions = torch.arange(x.shape[1], device=x.device)[None]
        turns = self.rotary(x, position_ids=positions)
        for layer in self.layers:
            x = layer(x, position_ids=positions, position_embeddings=turns)
        return self.output_proj(x)


def _shared(llm: Llama, vocab_size: int) -> LlamaModel:
    """transformers' Llama over the very weights of ours: nothing is copied."""
    hf = _hf_config(llm.config, vocab_size)
    with torch.device("meta"):
        twin = LlamaModel(hf)
    weights = {name: x for name, x in llm.state_dict().items() if not name.startswith("lm_head")}
    twin.load_state_dict(weights, assign=True)
    twin.rotary_emb = LlamaRotaryEmbedding(hf).to(weights["norm.weight"].device)
    return twin.eval().requires_grad_(False)


def _hf_config(config: BlockConfig, vocab_size: int) -> LlamaConfig:
    rope: dict = {"rope_type": "default", "rope_theta": config.rope.theta}
    if config.rope.factor != 1.0:
        rope |= {
            "rope_type": "llama3",
            "factor": config.rope.factor,
            "low_freq_factor": config.rope.low_freq_factor,
            "high_freq_factor": config.rope.high_freq_factor,
            "original_max_position_embeddings": config.rope.original_max_positions,
        }
    hf = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=config.width,
        intermediate_size=config.ffn_width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.norm_eps,
        rope_parameters=rope,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    hf._attn_implementation = "sdpa"  # what from_pretrained chooses; a layer made by itself is not asked
    return hf


def _unit_tokenizer(num_units: int) -> BertTokenizerLegacy:
    """Of a vocabulary file 0 … num_units, as the published worker builds it."""
    with TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "unit_vocab.txt"
        vocabulary.write_text("\n".join(map(str, range(num_units + 1))) + "\n")
        return BertTokenizerLegacy(str(vocabulary))
