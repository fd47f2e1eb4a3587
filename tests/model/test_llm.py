"""Our Llama is Hugging Face's: same weights, same states; rotary frequencies, grouped heads, tied embeddings, cache."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from omni.model import checkpoint
from omni.model import config as configs
from omni.model.config import RopeConfig
from omni.model.llm import Llama
from omni.model.transformer import frequencies

LLAMA_3 = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
           "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
SHAPES = {
    "grouped heads, llama3 rope": {"num_key_value_heads": 2, "rope_parameters": LLAMA_3},
    "full heads, tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "one kv head, wide head": {"num_key_value_heads": 1, "head_dim": 32},
}


def theirs(**shape) -> LlamaForCausalLM:
    torch.manual_seed(0)
    defaults = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
                "vocab_size": 200, "max_position_embeddings": 8192}  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**(defaults | shape))).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3.0)  # initial weights hardly move the states
    return model


def ours(model: LlamaForCausalLM) -> Llama:
    raw = model.config.to_dict() | {"eos_token_id": 1}
    config = configs.parse(raw)
    llama = Llama(config.llm, config.vocab_size, config.tied_embeddings).eval()
    weights = {name.removeprefix("model."): x for name, x in model.state_dict().items()}
    if config.tied_embeddings:
        weights.pop("lm_head.weight")
    llama.load_state_dict(weights)
    return llama


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.inference_mode()
def test_states_and_logits_are_hugging_faces(shape):
    model = theirs(**shape)
    llama, ids = ours(model), torch.randint(0, 200, (2, 40))
    expected = model(ids, output_hidden_states=True)
    hidden = llama(llama.embed(ids))
    torch.testing.assert_close(hidden, expected.hidden_states[-1], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(llama.logits(hidden), expected.logits, atol=2e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_cache_gives_what_a_whole_pass_gives():
    """Prompt at once, then in pieces of several and of one token."""
    llama = ours(theirs(**SHAPES["grouped heads, llama3 rope"]))
    embeds = torch.randn(1, 30, 64)
    whole, cache = llama(embeds), llama.new_cache()
    pieces, start = [], 0
    for size in (12, 5, 1, 1, 11):
        positions = torch.arange(start, start + size)[None]
        pieces.append(llama(embeds[:, start : start + size], positions, cache))
        start += size
    assert cache.length == 30
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("head_dim", [16, 24, 64, 128])
@pytest.mark.parametrize("scaled", [False, True], ids=["default", "llama3"])
def test_rotary_frequencies_are_transformers(head_dim, scaled):
    rope = LLAMA_3 if scaled else {"rope_type": "default", "rope_theta": 10_000.0}
    config = LlamaConfig(hidden_size=4 * head_dim, num_attention_heads=4, head_dim=head_dim, rope_parameters=rope)
    if scaled:
        expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        own = RopeConfig(500_000.0, 8.0, 1.0, 4.0, 8192)
    else:
        expected = 1.0 / 10_000.0 ** (torch.arange(0, head_dim, 2) / head_dim)
        own = RopeConfig(10_000.0)
    torch.testing.assert_close(frequencies(own, head_dim), expected, atol=0, rtol=1e-5)


@torch.inference_mode()
def test_a_hugging_face_directory_loads(tmp_path):
    """Safetensors as save_pretrained writes them; tied weights come once."""
    model = theirs(**SHAPES["full heads, tied"])
    model.save_pretrained(tmp_path)
    config, weights = checkpoint.load_llama(tmp_path)
    assert config["hidden_size"] == 64
    assert "lm_head.weight" not in weights
    assert weights["model.embed_tokens.weight"].equal(model.model.embed_tokens.weight)
