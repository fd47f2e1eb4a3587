"""The models to measure: `mini`, `tiny` or a directory as they are, or the published shapes with random weights.

    loaded = load("8b", "cuda", torch.bfloat16)
    loaded.omni, loaded.vocoder, loaded.trace(7)       # what answer 7 is to be, where weights are random

Random weights cost what trained ones cost, but they say nothing: they end no answer, and their units and durations mean
nothing. So a trace supplies lengths and units, and the duration predictor is set to a plausible mean.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from tokenizers import Tokenizer, decoders, models
from torch import nn
from transformers import PreTrainedTokenizerFast

from bench import traces
from bench.traces import Trace
from omni import checkpoints
from omni.model import checkpoint, tiny
from omni.model import config as configs
from omni.model.config import EncoderConfig, OmniConfig
from omni.model.encoder import Encoder
from omni.model.omni import Omni
from omni.model.prompt import SPEECH, Utterance
from omni.model.transformer import RMSNorm
from omni.vocoder import checkpoint as voices
from omni.vocoder.code_hifigan import CodeHiFiGAN
from omni.vocoder.durations import UnitVocoder

PUBLISHED = {  # config.json of ICTNLP/Llama-3.1-8B-Omni, as far as it gives shapes
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "vocab_size": 128_256,
    "ctc_decoder_config": "(2,4096,32,11008)",
    "ctc_upsample_factor": 25,
    "unit_vocab_size": 1000,
    "tokenizer_model_max_length": 2048,
}
WHISPER_LARGE_V3 = EncoderConfig(num_mels=128, num_positions=1500, width=1280, num_heads=20, num_layers=32)
PUBLISHED_VOCODER = {
    "upsample_rates": [5, 4, 4, 2, 2],
    "upsample_kernel_sizes": [11, 8, 8, 4, 4],
    "upsample_initial_channel": 512,
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5]] * 3,
    "num_embeddings": 1000,
    "embedding_dim": 128,
    "model_in_dim": 128,
    "dur_predictor_params": {"encoder_embed_dim": 128, "var_pred_hidden_dim": 128, "var_pred_kernel_size": 3},
}
SYSTEM_TOKENS, REQUEST_TOKENS = 45, 17  # of the published template, before and after the speech
SHAPES = ("mini", "tiny", "8b")
NARROW = (1, 2, 4, 8)  # what the published numbers of heads can be divided by
TRACE_SAYS = "random weights made on the device; lengths and units from a trace, durations of about 1.6 frames a unit"


@dataclass(frozen=True)
class Loaded:
    name: str
    says: str  # a line for the table: what is real about it
    omni: Omni
    vocoder: UnitVocoder
    trace: Callable[[int], Trace | None]


def load(
    shape: str,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    layers: int | None = None,
    true_length: bool = False,
    narrow: int = 1,
) -> Loaded:
    """A shape by name, or a checkpoint directory. `layers` and `narrow` cut the published shapes for small machines."""
    if shape == "8b":
        omni = published(*published_config(layers, true_length, narrow), device, dtype)
        cut = "" if layers is None else f"; only {layers} layers of the LLM and of the encoder"
        cut += "" if narrow == 1 else f"; all widths but the vocoder's divided by {narrow}"
        return Loaded(
            shape, TRACE_SAYS + cut, omni, published_vocoder(dtype).to(device), lambda seed: traces.trace(seed)
        )
    found = checkpoints.resolve(shape)
    says = {"mini": "the mini checkpoint", "tiny": "the tiny checkpoint: random weights, for tests"}
    omni = checkpoint.load(found.model, device, dtype)
    vocoder = voices.load(found.vocoder, device)
    return Loaded(shape, says.get(shape, f"the checkpoint {found.name}"), omni, vocoder, lambda seed: None)


def published_config(
    layers: int | None = None, true_length: bool = False, narrow: int = 1
) -> tuple[OmniConfig, EncoderConfig]:
    """The 8B model's shapes; no token ends an answer. `narrow` divides widths, heads and the vocabulary."""
    raw = PUBLISHED | {"num_hidden_layers": layers or PUBLISHED["num_hidden_layers"], "eos_token_id": []}
    config = configs.parse(raw | {"speech_input": "true-length" if true_length else "padded"})
    encoder = replace(WHISPER_LARGE_V3, num_layers=layers or WHISPER_LARGE_V3.num_layers)
    return (config, encoder) if narrow == 1 else _narrow(config, encoder, narrow)


def _narrow(config: OmniConfig, encoder: EncoderConfig, factor: int) -> tuple[OmniConfig, EncoderConfig]:
    """Heads stay as wide as they are; there are fewer of them."""
    heads = encoder.num_heads // factor
    encoder = replace(encoder, num_heads=heads, width=encoder.width // encoder.num_heads * heads)
    llm, unit_decoder = (
        replace(
            block,
            width=block.width // factor,
            num_heads=block.num_heads // factor,
            num_kv_heads=block.num_kv_heads // factor,
            ffn_width=block.ffn_width // factor,
        )
        for block in (config.llm, config.unit_decoder)
    )
    narrowed = replace(
        config,
        llm=llm,
        unit_decoder=unit_decoder,
        encoder_width=encoder.width,
        vocab_size=config.vocab_size // factor,
        adaptor_hidden=config.adaptor_hidden // factor,
    )
    return narrowed, encoder


@torch.no_grad()
def published(config: OmniConfig, encoder: EncoderConfig, device: str, dtype: torch.dtype) -> Omni:
    """Random weights, drawn on the device: zeros would multiply faster."""
    with torch.device("meta"):
        omni = Omni(config, encoder, word_tokenizer(config.vocab_size))
    omni = omni.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for module in omni.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, RMSNorm | nn.LayerNorm):
            own[0].fill_(1.0)
            own = own[1:]
        for parameter in own:
            parameter.normal_(0.0, 0.02, generator=generator)
        if isinstance(module, Encoder):
            positions = tiny.sinusoids(encoder.num_positions, encoder.width)
            module.positional_embedding.copy_(positions)
    omni.prompt = FixedPrompt(config.vocab_size)  # type: ignore[assignment]
    return omni


@torch.no_grad()
def published_vocoder(dtype: torch.dtype = torch.float32) -> CodeHiFiGAN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vocoder = CodeHiFiGAN(PUBLISHED_VOCODER).eval().requires_grad_(False)
    vocoder.dur_predictor.proj.bias.fill_(0.7)
    for part in (vocoder.conv_pre, vocoder.ups, vocoder.resblocks, vocoder.conv_post):
        part.to(dtype)
    return vocoder


class FixedPrompt:
    """A conversation → as many ids as the published template has round the speech, without its tokenizer."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def __call__(self, conversation: list[Utterance]) -> list[int]:
        ids = self._words("system", SYSTEM_TOKENS)
        for each in conversation:
            words = each.text.split() if each.text else []
            ids += [SPEECH] if each.speech is not None else [self._word(word) for word in words]
            ids += self._words(each.role, REQUEST_TOKENS)
        return ids

    def _words(self, kind: str, count: int) -> list[int]:
        return [self._word(f"{kind} {i}") for i in range(count)]

    def _word(self, word: str) -> int:
        return sum(word.encode()) * 7919 % self.vocab_size


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Every id is a word of its own."""
    words = {f"Ġw{i}": i for i in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="Ġw0"))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
