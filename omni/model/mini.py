"""The mini checkpoint: packaged SmolLM2-135M-Instruct and Whisper tiny.en with what we trained, as published files.

What we trained ships with this package (mini_weights/): the adaptor, the unit decoder, the vocoder, and the LLM's
tuning as low-rank deltas, merged here: W + scale · B A. How it was trained: recipes/mini.sh; how good: docs/mini.md.
"""

import hashlib
import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from omni.model import adaptors, checkpoint, packaged
from omni.model.adaptor import with_tokens
from omni.model.checkpoint import ADAPTOR, ENCODER, TUNED_ENCODER, UNIT_DECODER
from omni.model.encoder import Encoder

SHIPPED = Path(__file__).parent / "mini_weights"


def version() -> str:
    """Eight letters that change with what ships."""
    digest = hashlib.sha256()
    for path in sorted(SHIPPED.rglob("*")):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def write(directory: Path) -> None:
    """Fetch, merge and write the checkpoint into an existing, empty directory (about 350 MB)."""
    assemble(directory, SHIPPED, packaged.fetch("smollm2"), packaged.fetch("whisper-tiny.en"))


def assemble(directory: Path, parts: Path, llm_file: Path, whisper_file: Path) -> None:
    """Trained parts (as mini_weights/ holds them), an LLM (a folder or .gguf) and a Whisper .pt → a checkpoint.

    A LLM that was not tuned has no llm_delta.safetensors. Further adaptors in parts' adaptors/ come along.
    """
    llm_config, weights = checkpoint.load_llama(llm_file)
    if (parts / "llm_delta.safetensors").exists():
        merge(weights, parts / "llm_delta.safetensors")
    encoder = checkpoint.load_whisper(whisper_file)
    if (parts / TUNED_ENCODER).exists():
        replace(encoder, load_file(parts / TUNED_ENCODER))
    trained = {
        ENCODER: encoder.state_dict(),
        ADAPTOR: with_tokens(load_file(parts / "adaptor.safetensors"), weights["model.embed_tokens.weight"]),
        UNIT_DECODER: load_file(parts / "unit_decoder.safetensors"),
    }
    for prefix, tensors in trained.items():
        weights |= {prefix + name: x for name, x in tensors.items()}
    save_file({name: x.half().contiguous() for name, x in weights.items()}, directory / "model.safetensors")
    config = published(llm_config) | json.loads((parts / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    where = {"gguf_file": llm_file.name} if llm_file.is_file() else {}
    AutoTokenizer.from_pretrained(llm_file.parent if where else llm_file, **where).save_pretrained(directory)
    if (parts / adaptors.FOLDER).is_dir():
        shutil.copytree(parts / adaptors.FOLDER, directory / adaptors.FOLDER)
    (directory / "vocoder").mkdir()
    for path in (parts / "vocoder" / "config.json", *(parts / "vocoder").glob("g_*")):
        shutil.copy(path, directory / "vocoder")


def replace(encoder: Encoder, tuned: dict[str, Tensor]) -> None:
    """Give the encoder the tensors that training changed, in place. Raises CheckpointError for one it does not have."""
    known = encoder.state_dict()
    for name, x in tuned.items():
        if name not in known or known[name].shape != x.shape:
            raise checkpoint.CheckpointError(f"{TUNED_ENCODER} changes {name}, which the encoder does not have.")
        known[name].copy_(x)


def merge(weights: dict[str, Tensor], delta_file: Path) -> None:
    """Add the low-rank deltas to the LLM's weights, in place. Names: layers.N.….lora_a (r, in) and .lora_b (out, r)."""
    with safe_open(delta_file, framework="pt") as delta:
        scale = float(delta.metadata()["scale"])
        names = sorted(name.removesuffix(".lora_a") for name in delta.keys() if name.endswith(".lora_a"))  # noqa: SIM118
        for name in names:
            a, b = delta.get_tensor(f"{name}.lora_a").float(), delta.get_tensor(f"{name}.lora_b").float()
            target = f"{name}.weight"
            if target not in weights:
                raise checkpoint.CheckpointError(f"{delta_file} changes {name}, which the LLM does not have.")
            weights[target] = weights[target] + scale * torch.matmul(b, a)


def published(llm: dict) -> dict:
    """A Hugging Face Llama config → the keys of a published config.json."""
    keys = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "rms_norm_eps", "vocab_size", "tie_word_embeddings", "rope_parameters", "head_dim", "bos_token_id",
        "eos_token_id",
    )  # fmt: skip
    return {"architectures": ["OmniSpeech2SLlamaForCausalLM"], "model_type": "omni_speech2s_llama"} | {
        key: llm[key] for key in keys if llm.get(key) is not None
    }
