"""Sizes of a LLaMA-Omni to train, and what one sample of training costs in multiplications. Knows no data.

    shape = SHAPES["8b"]
    work = stage1_work(shape, frames=1500, prompt=62, answer=50)
    work.model, work.hardware          # FLOP a sample needs, and does when activations are computed again

A multiplication and an addition are two FLOP. Matrix products count, everything else does not. A backward pass through
frozen weights costs one forward pass, through trained ones two. Attention is counted causal for the LLM and the unit
decoder, whole for the encoder. The LLM's head runs on the answer's positions only.
"""

from dataclasses import dataclass
from typing import Any

from omni.model.config import EncoderConfig


@dataclass(frozen=True)
class Shape:
    encoder: EncoderConfig
    llm: dict[str, Any]  # transformers' LlamaConfig
    adaptor_hidden: int
    unit_decoder: str  # ctc_decoder_config
    num_units: int
    upsample: int
    prompt_style: str

    def published(self) -> dict[str, Any]:
        """The keys of the config.json that serves it."""
        return self.llm | {
            "speech_encoder_hidden_size": self.encoder.width,
            "speech_encoder_heads": self.encoder.num_heads,
            "speech_projector_hidden": self.adaptor_hidden,
            "ctc_decoder_config": self.unit_decoder,
            "ctc_upsample_factor": self.upsample,
            "unit_vocab_size": self.num_units,
            "prompt_style": self.prompt_style,
        }


SHAPES = {
    "8b": Shape(  # the published checkpoint: Llama-3.1-8B, Whisper large-v3, a decoder of 425 M
        EncoderConfig(num_mels=128, num_positions=1500, width=1280, num_heads=20, num_layers=32),
        {
            "vocab_size": 128_256,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
        adaptor_hidden=2048,
        unit_decoder="(2,4096,32,11008)",
        num_units=1000,
        upsample=25,
        prompt_style="llama_3",
    ),
    "small": Shape(  # the same, for tests: seconds on a CPU
        EncoderConfig(num_mels=80, num_positions=1500, width=64, num_heads=2, num_layers=2),
        {
            "vocab_size": 259,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        adaptor_hidden=64,
        unit_decoder="(2,64,4,128)",
        num_units=100,
        upsample=25,
        prompt_style="chatml",
    ),
}


@dataclass(frozen=True)
class Work:
    """FLOP of one sample. `hardware` counts what gradient checkpointing computes again."""

    model: float
    hardware: float


def stage1_work(
    shape: Shape, frames: int, prompt: int, answer: int, trained: str = "full", checkpointing: bool = True
) -> Work:
    """Encoder forward; adaptor trained; LLM trained ("full") or frozen under small deltas ("lora")."""
    positions = prompt + frames // 5 + answer - 1
    forward = llm_forward(shape, positions)
    head = 2 * shape.llm["hidden_size"] * shape.llm["vocab_size"] * answer
    passes = 3 if trained == "full" else 2
    model = encoder_forward(shape, frames) + 3 * adaptor_forward(shape, frames) + passes * (forward + head)
    return Work(model, model + (forward if checkpointing else 0.0))


def stage2_work(shape: Shape, frames: int, prompt: int, answer: int, cached: bool = False) -> Work:
    """The LLM's states (unless they are kept from before), then the unit decoder, trained."""
    states = 0.0
    if not cached:
        positions = prompt + frames // 5 + answer - 1
        states = encoder_forward(shape, frames) + adaptor_forward(shape, frames) + llm_forward(shape, positions)
    work = states + 3 * decoder_forward(shape, answer)
    return Work(work, work)


def encoder_forward(shape: Shape, frames: int) -> float:
    """The frozen encoder over `frames` of 20 ms: 12 d² a block and frame, attention over all, two convolutions."""
    d, layers = shape.encoder.width, shape.encoder.num_layers
    convolutions = 2 * 3 * d * (2 * frames * shape.encoder.num_mels + frames * d)
    return 2 * frames * layers * 12 * d**2 + 4 * frames**2 * d * layers + convolutions


def adaptor_forward(shape: Shape, frames: int) -> float:
    inner = 5 * shape.encoder.width * shape.adaptor_hidden + shape.adaptor_hidden * shape.llm["hidden_size"]
    return 2 * inner * (frames // 5)


def llm_forward(shape: Shape, positions: int) -> float:
    """The LLM's blocks, without its head."""
    llm = shape.llm
    width, head_dim = llm["hidden_size"], llm["hidden_size"] // llm["num_attention_heads"]
    attention = 2 * width**2 + 2 * width * head_dim * llm["num_key_value_heads"]
    block = attention + 3 * width * llm["intermediate_size"]
    causal = 4 * width * positions * (positions + 1) / 2
    return llm["num_hidden_layers"] * (2 * block * positions + causal)


def decoder_forward(shape: Shape, answer: int) -> float:
    """The unit decoder over upsample · answer positions, as published: the input projection on each of them."""
    layers, width, _, ffn = (int(part) for part in shape.unit_decoder.strip("() ").split(","))
    positions = shape.upsample * answer
    block = 4 * width**2 + 3 * width * ffn
    ends = shape.llm["hidden_size"] * width / shape.upsample + width * (shape.num_units + 1)  # projected once a token
    return 2 * (layers * block + ends) * positions + layers * 4 * width * positions * (positions + 1) / 2
