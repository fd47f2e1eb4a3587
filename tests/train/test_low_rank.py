"""Low-rank deltas: those that merge answer as those that were trained beside the LLM."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from omni.model import mini
from omni.train import low_rank


@pytest.fixture
def llm():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).requires_grad_(False).eval()


def test_merged_deltas_answer_as_trained_ones(llm, tmp_path):
    """What mini.merge adds to the weights equals what LowRank adds to the outputs."""
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    weights = {name: x.clone() for name, x in llm.state_dict().items()}
    deltas = low_rank.add_deltas(llm, rank=3)
    for delta in deltas.values():
        torch.nn.init.normal_(delta.lora_b, std=0.1)
    trained = llm(ids).logits
    low_rank.save_deltas(deltas, tmp_path / "llm_delta.safetensors", torch.float32)
    plain = LlamaForCausalLM(llm.config).eval()
    mini.merge(weights, tmp_path / "llm_delta.safetensors")
    plain.load_state_dict(weights)
    torch.testing.assert_close(plain(ids).logits, trained, rtol=1e-4, atol=1e-5)
    assert len(load_file(tmp_path / "llm_delta.safetensors")) == 2 * 2 * 7  # A and B, two blocks, seven layers each


def test_new_deltas_change_nothing(llm):
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    before = llm(ids).logits
    low_rank.add_deltas(llm, rank=3)
    torch.testing.assert_close(llm(ids).logits, before)


def test_saved_deltas_load_again(llm, tmp_path):
    """The phase that answers starts from what the phase that reads has learnt."""
    deltas = low_rank.add_deltas(llm, rank=3)
    for delta in deltas.values():
        torch.nn.init.normal_(delta.lora_b)
    low_rank.save_deltas(deltas, tmp_path / "read.safetensors", torch.float32)
    saved = [parameter.detach().clone() for parameter in low_rank.low_rank(deltas)]
    for parameter in low_rank.low_rank(deltas):
        torch.nn.init.zeros_(parameter)
    low_rank.load_deltas(deltas, tmp_path / "read.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(low_rank.low_rank(deltas), saved, strict=True))
