"""The tiny checkpoint: seeded random weights in the published layout, for tests. It says nothing, but says it all.

Byte-level tokenizer, true-length input, everything small: made in under a second, the same bytes on every machine.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from omni.model import config as configs
from omni.model.adaptor import Adaptor
from omni.model.checkpoint import ADAPTOR, ENCODER, UNIT_DECODER
from omni.model.config import EncoderConfig
from omni.model.encoder import Encoder
from omni.model.llm import Llama
from omni.model.unit_decoder import UnitDecoder

SEED = 20260910
NUM_UNITS = 100
CONFIG = {
    "architectures": ["OmniSpeech2SLlamaForCausalLM"],
    "model_type": "omni_speech2s_llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 259,
    "bos_token_id": 257,
    "eos_token_id": [258],
    "speech_encoder_type": "whisper",
    "speech_encoder_hidden_size": 64,
    "speech_encoder_heads": 2,
    "speech_encoder_ds_rate": 5,
    "speech_projector_type": "linear",
    "speech_projector_hidden": 64,
    "speech_generator_type": "ctc",
    "ctc_decoder_config": "(2,64,4,128)",
    "ctc_upsample_factor": 25,
    "unit_vocab_size": NUM_UNITS,
    "speech_input": "true-length",
    "adaptor_context": 1,
    "prompt_style": "chatml",
    "tokenizer_model_max_length": 1024,
}
ENCODER_DIMS = EncoderConfig(num_mels=80, num_positions=1500, width=64, num_heads=2, num_layers=2)


def write(directory: Path) -> None:
    """Write the checkpoint's files into an existing, empty directory."""
    (directory / "config.json").write_text(json.dumps(CONFIG, indent=2))
    config = configs.parse(CONFIG)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        encoder = Encoder(ENCODER_DIMS)
        encoder.positional_embedding.copy_(sinusoids(ENCODER_DIMS.num_positions, ENCODER_DIMS.width))
        adaptor = Adaptor(config)
        llm = Llama(config.llm, config.vocab_size, config.tied_embeddings)
        assert llm.lm_head is not None, "the tiny LLM's embeddings are not tied"
        units = UnitDecoder(config.unit_decoder, config.llm.width, config.num_units, config.upsample)
        for stack in (llm, units):
            lively(stack)
        units.output_proj.bias.data[-1] += 3.0  # more blanks
        tokenizer = byte_tokenizer()
        for token_id in range(config.vocab_size - 1):
            text = str(tokenizer.decode([token_id]))
            if not (text.isascii() and text.isprintable()):
                llm.lm_head.weight.data[token_id] = 0.0  # never the best: the answer is readable ASCII
    weights = {f"model.{name}": x for name, x in llm.state_dict().items()}
    for prefix, module in ((ENCODER, encoder), (ADAPTOR, adaptor), (UNIT_DECODER, units)):
        weights |= {prefix + name: x for name, x in module.state_dict().items()}
    save_file({name: x.half().contiguous() for name, x in weights.items()}, directory / "model.safetensors")
    tokenizer.save_pretrained(directory)


def lively(stack: nn.Module) -> None:
    """Larger weights, so that the answer varies from token to token and from position to position."""
    for module in stack.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.mul_(3.0)


def sinusoids(length: int, width: int) -> Tensor:
    """Whisper's encoder positions (length, width): sines, then cosines."""
    step = torch.log(torch.tensor(10_000.0)) / (width // 2 - 1)
    angles = torch.arange(length)[:, None] * torch.exp(-step * torch.arange(width // 2))[None]
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the three special tokens of a chatml prompt."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(x, special=True) for x in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
