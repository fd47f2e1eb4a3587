"""What ships is merged with what packages carry: W + scale · B A."""

import pytest
import torch
from safetensors.torch import save_file

from omni.model import mini
from omni.model.checkpoint import CheckpointError


def delta_file(path, name):
    a, b = torch.randn(2, 6), torch.randn(4, 2)
    save_file({f"{name}.lora_a": a, f"{name}.lora_b": b}, path, metadata={"scale": "0.5"})
    return a, b


def test_a_low_rank_delta_is_added_to_its_weight(tmp_path):
    a, b = delta_file(tmp_path / "delta.safetensors", "model.layers.0.mlp.up_proj")
    before = torch.randn(4, 6)
    weights = {"model.layers.0.mlp.up_proj.weight": before.clone(), "model.norm.weight": torch.ones(6)}
    mini.merge(weights, tmp_path / "delta.safetensors")
    torch.testing.assert_close(weights["model.layers.0.mlp.up_proj.weight"], before + 0.5 * b @ a)
    assert weights["model.norm.weight"].equal(torch.ones(6))


def test_a_delta_for_another_model_is_refused(tmp_path):
    delta_file(tmp_path / "delta.safetensors", "model.layers.7.mlp.up_proj")
    with pytest.raises(CheckpointError, match=r"layers\.7"):
        mini.merge({"model.norm.weight": torch.ones(6)}, tmp_path / "delta.safetensors")


def test_the_published_config_keeps_the_llms_shape_and_drops_the_rest():
    config = mini.published({"hidden_size": 576, "vocab_size": 49152, "torch_dtype": "float32", "head_dim": None})
    assert config["hidden_size"] == 576
    assert config["vocab_size"] == 49152
    assert "torch_dtype" not in config and "head_dim" not in config
