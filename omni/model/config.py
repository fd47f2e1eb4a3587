"""The shape of a checkpoint: the published config.json's keys, and the few of ours. Knows no weights.

Published keys keep their published meaning and defaults (ictnlp/LLaMA-Omni, config.json of Llama-3.1-8B-Omni). Ours:

    speech_input           "padded" (published: always 30 s) or "true-length" (only what was said)
    adaptor_context        neighbouring 5-frame windows the adaptor sees on each side; 0 as published
    adaptor_blocks         "(layers,width,heads,ffn)" of blocks at 10 Hz behind the adaptor; none as published
    adaptor_tokens         how many tokens the adaptor tells apart and hands on as the LLM's embeddings; 0 as published
    speech_projector_hidden  width of the adaptor's hidden layer; 2048 as published
    prompt_style           "llama_3" (published) or "chatml"
"""

import json
from dataclasses import dataclass
from pathlib import Path


class ConfigError(ValueError):
    """A checkpoint's config.json is missing, unreadable or holds a value we cannot serve."""


@dataclass(frozen=True)
class RopeConfig:
    theta: float = 10_000.0
    factor: float = 1.0  # 1.0: no scaling; else llama3 scaling with the three values below
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True)
class BlockConfig:
    """One stack of Llama blocks: the LLM's, or the unit decoder's."""

    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_width: int
    norm_eps: float
    rope: RopeConfig


@dataclass(frozen=True)
class EncoderConfig:
    """A Whisper encoder's dims, as `dims` in a Whisper .pt file."""

    num_mels: int
    num_positions: int  # 1500 frames at 50 Hz = 30 s
    width: int
    num_heads: int
    num_layers: int


@dataclass(frozen=True)
class OmniConfig:
    llm: BlockConfig
    unit_decoder: BlockConfig
    encoder_width: int
    vocab_size: int
    tied_embeddings: bool
    eos_token_ids: tuple[int, ...]
    num_units: int = 1000  # the blank is the class after the last unit
    upsample: int = 25  # unit decoder positions per text token
    frames_per_embedding: int = 5  # 50 Hz → 10 Hz
    adaptor_hidden: int = 2048
    adaptor_context: int = 0
    adaptor_blocks: BlockConfig | None = None
    adaptor_tokens: int = 0
    speech_input: str = "padded"
    prompt_style: str = "llama_3"
    encoder_file: str | None = None  # a Whisper .pt, where the shards hold no encoder
    encoder_heads: int | None = None  # Whisper's head_dim is 64 unless told
    max_tokens: int = 2048  # longest prompt plus answer

    @property
    def blank(self) -> int:
        return self.num_units


def read(directory: Path) -> OmniConfig:
    """config.json of a checkpoint directory → OmniConfig. Raises ConfigError with the key that is wrong."""
    path = Path(directory) / "config.json"
    try:
        return parse(json.loads(path.read_text()))
    except FileNotFoundError as exc:
        raise ConfigError(f"{path} does not exist: is {directory} a checkpoint directory?") from exc
    except json.JSONDecodeError as exc:
        raise ConfigError(f"{path} is not JSON: {exc}") from exc
    except KeyError as exc:
        raise ConfigError(f"{path} lacks the key {exc}.") from exc


def parse(raw: dict) -> OmniConfig:
    """A config.json's content → OmniConfig."""
    if raw.get("speech_generator_type", "ctc") != "ctc":
        raise ConfigError(f"speech_generator_type {raw['speech_generator_type']!r} is not supported. Only 'ctc' is.")
    heads = raw["num_attention_heads"]
    rope = _rope(raw)
    eps = raw.get("rms_norm_eps", 1e-6)
    llm = BlockConfig(
        num_layers=raw["num_hidden_layers"],
        width=raw["hidden_size"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        ffn_width=raw["intermediate_size"],
        norm_eps=eps,
        rope=rope,
    )
    eos = raw.get("eos_token_id")
    config = OmniConfig(
        llm=llm,
        unit_decoder=_blocks("ctc_decoder_config", raw.get("ctc_decoder_config", "(2,4096,32,11008)"), eps, rope),
        encoder_width=raw.get("speech_encoder_hidden_size", 1280),
        vocab_size=raw["vocab_size"],
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        eos_token_ids=tuple(eos) if isinstance(eos, list) else (eos,) if eos is not None else (),
        num_units=raw.get("unit_vocab_size", 1000),
        upsample=raw.get("ctc_upsample_factor", 25),
        frames_per_embedding=raw.get("speech_encoder_ds_rate", 5),
        adaptor_hidden=raw.get("speech_projector_hidden", 2048),
        adaptor_context=raw.get("adaptor_context", 0),
        adaptor_tokens=raw.get("adaptor_tokens", 0),
        adaptor_blocks=_blocks("adaptor_blocks", raw["adaptor_blocks"], eps, rope) if "adaptor_blocks" in raw else None,
        speech_input=raw.get("speech_input", "padded"),
        prompt_style=raw.get("prompt_style", "llama_3"),
        encoder_file=raw.get("speech_encoder"),
        encoder_heads=raw.get("speech_encoder_heads"),
        max_tokens=raw.get("tokenizer_model_max_length", 2048),
    )
    for key, value, choices in (
        ("speech_input", config.speech_input, ("padded", "true-length")),
        ("prompt_style", config.prompt_style, ("llama_3", "chatml")),
    ):
        if value not in choices:
            raise ConfigError(f"{key} is {value!r}. Select one of {', '.join(choices)}.")
    if config.adaptor_blocks and config.adaptor_blocks.width != llm.width:
        wrong = config.adaptor_blocks.width
        raise ConfigError(f"adaptor_blocks are {wrong} wide. Select the LLM's width, {llm.width}.")
    return config


def _blocks(key: str, text: str, eps: float, rope: RopeConfig) -> BlockConfig:
    """The published string "(layers,width,heads,ffn)" → BlockConfig: full attention heads, the LLM's rope."""
    try:
        layers, width, heads, ffn = (int(part) for part in text.strip("() ").split(","))
    except ValueError as exc:
        raise ConfigError(f"{key} is {text!r}; expected '(layers,width,heads,ffn)'.") from exc
    return BlockConfig(layers, width, heads, heads, width // heads, ffn, eps, rope)


def _rope(raw: dict) -> RopeConfig:
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = scaling.get("rope_theta") or raw.get("rope_theta") or 10_000.0
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta)
    if kind != "llama3":
        raise ConfigError(f"rope_type {kind!r} is not supported. Select one of default, llama3.")
    return RopeConfig(
        theta,
        scaling["factor"],
        scaling["low_freq_factor"],
        scaling["high_freq_factor"],
        scaling["original_max_position_embeddings"],
    )
