"""Files → Omni: the published layout, a Whisper .pt, a Llama from Hugging Face files or GGUF. Nothing is unpickled.

A checkpoint directory holds config.json, model*.safetensors (with index where sharded) and the tokenizer; the encoder
comes from the Whisper .pt that config.json names, where that file is there (the published code loads it over the
shards' copy), else from the shards (`model.speech_encoder.*`). Source: ictnlp/LLaMA-Omni, builder.py.
Further adaptors lie in adaptors/ (adaptors.py).
"""

import dataclasses
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from omni.model import adaptors
from omni.model import config as configs
from omni.model.adaptor import Adaptor, with_tokens
from omni.model.adaptors import BadAdaptorName
from omni.model.config import EncoderConfig
from omni.model.encoder import Encoder
from omni.model.omni import Omni

ENCODER, ADAPTOR, UNIT_DECODER = "model.speech_encoder.", "model.speech_projector.", "speech_generator."
TUNED_ENCODER = "encoder.safetensors"  # beside an adaptor: the tensors of its encoder that training changed
WHISPER_HEAD_DIM = 64


class CheckpointError(ValueError):
    """A file of the checkpoint is missing, or holds what it should not."""


def load(directory: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Omni:
    """A checkpoint directory → Omni in eval mode. Raises CheckpointError or ConfigError naming the file."""
    directory = Path(directory)
    config = configs.read(directory)
    weights = dict(_safetensors(directory))
    encoder = _take(weights, ENCODER)
    whisper = _find_whisper(directory, config.encoder_file)
    if whisper is not None:
        dims, encoder = _whisper_file(whisper)
    elif encoder:
        dims = _dims_from_weights(encoder, config.encoder_heads)
    else:
        raise CheckpointError(f"{directory} holds no speech encoder, and {config.encoder_file} is not there.")
    with torch.device("meta"):
        omni = Omni(config, dims, tokenizer(directory))
    _fill(omni.encoder, encoder, "speech encoder")
    _fill(omni.adaptor, _take(weights, ADAPTOR), "speech projector")
    _fill(omni.unit_decoder, _take(weights, UNIT_DECODER), "speech generator")
    _fill(omni.llm, {name.removeprefix("model."): weights[name] for name in weights}, "language model")
    further = {name: _further(folder, omni) for name, folder in _find_adaptors(directory).items()}
    omni.adaptors = {name: each.to(device, dtype).eval().requires_grad_(False) for name, each in further.items()}
    return omni.to(device, dtype).eval().requires_grad_(False)


def load_whisper(path: str | Path) -> Encoder:
    """The encoder of a Whisper .pt file of any size, float32."""
    dims, weights = _whisper_file(Path(path))
    with torch.device("meta"):
        encoder = Encoder(dims)
    _fill(encoder, weights, "speech encoder")
    return encoder.float().eval().requires_grad_(False)


def load_llama(path: str | Path) -> tuple[dict, dict[str, Tensor]]:
    """A Hugging Face directory or a .gguf file of a Llama → its config (dict) and state dict (float32)."""
    path = Path(path)
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name} if path.suffix == ".gguf" else {
        "pretrained_model_name_or_path": path}  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, local_files_only=True)
    if model.config.model_type != "llama":
        raise CheckpointError(f"{path} is a {model.config.model_type}, not a Llama.")
    weights = model.state_dict()
    if model.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    return model.config.to_dict(), weights


def tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    if not (directory / "tokenizer.json").exists():
        raise CheckpointError(f"{directory} has no tokenizer.json.")
    return PreTrainedTokenizerFast.from_pretrained(directory)


def _safetensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    index = directory / "model.safetensors.index.json"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    for file in files:
        path = directory / file
        if path.parent != directory or not path.exists():
            raise CheckpointError(f"{path} is missing.")
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                yield name, tensors.get_tensor(name)


def _take(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): weights.pop(name) for name in list(weights) if name.startswith(prefix)}


def _fill(module: nn.Module, weights: dict[str, Tensor], what: str) -> None:
    try:
        module.load_state_dict(weights, assign=True)
    except RuntimeError as exc:
        raise CheckpointError(f"The {what} does not fit its config: {exc}") from exc


def _find_adaptors(directory: Path) -> dict[str, Path]:
    try:
        return adaptors.find(directory)
    except BadAdaptorName as exc:
        raise CheckpointError(str(exc)) from exc


def _further(folder: Path, omni: Omni) -> Adaptor:
    """The adaptor in this folder, in the shape of the checkpoint's own; but it may tell other tokens apart."""
    path, config, embeddings = folder / adaptors.FILE, omni.config, omni.llm.embed_tokens.weight
    tensors = _whole(path)
    ids = tensors.get("tokens.ids")
    if ids is not None and (ids.dim() != 1 or len(ids) < 2 or not 0 <= ids.min() <= ids.max() < len(embeddings)):
        raise CheckpointError(f"{path}: tokens.ids are not tokens of this checkpoint's LLM, and silence.")
    if ids is not None and config.adaptor_tokens:
        config = dataclasses.replace(config, adaptor_tokens=len(ids) - 1)
    _check_shared(folder / TUNED_ENCODER, omni.encoder)
    with torch.device("meta"):
        adaptor = Adaptor(config)
    _fill(adaptor, with_tokens(tensors, embeddings), f"adaptor in {path}")
    return adaptor


def _check_shared(path: Path, encoder: Encoder) -> None:
    """The encoder that an adaptor learnt behind, as far as it was tuned, is this one."""
    own = encoder.state_dict()
    for name, x in _whole(path).items() if path.exists() else ():
        if name not in own or not torch.equal(own[name].half(), x.half()):
            raise CheckpointError(
                f"{path}: {name} is not the checkpoint's, and all adaptors of a checkpoint share its encoder. "
                f"Train this one with that encoder: --begin with the state it comes from, --tune-encoder 0."
            )


def _whole(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as exc:
        raise CheckpointError(f"{path} is missing or no safetensors file: {exc}") from exc


def _find_whisper(directory: Path, named: str | None) -> Path | None:
    roots = (directory, directory.parent)  # the published path is relative to the folder above the checkpoint
    return next((root / named for root in roots if named and (root / named).is_file()), None)


def _whisper_file(path: Path) -> tuple[EncoderConfig, dict[str, Tensor]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        dims, state = content["dims"], content["model_state_dict"]
    except (pickle.UnpicklingError, KeyError, RuntimeError) as exc:
        raise CheckpointError(f"{path} is not a Whisper checkpoint: {exc}") from exc
    config = EncoderConfig(
        dims["n_mels"], dims["n_audio_ctx"], dims["n_audio_state"], dims["n_audio_head"], dims["n_audio_layer"]
    )
    return config, {name.removeprefix("encoder."): x for name, x in state.items() if name.startswith("encoder.")}


def _dims_from_weights(weights: dict[str, Tensor], num_heads: int | None) -> EncoderConfig:
    width, num_mels, _ = weights["conv1.weight"].shape
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    positions = weights["positional_embedding"].shape[0]
    return EncoderConfig(num_mels, positions, width, num_heads or width // WHISPER_HEAD_DIM, layers)
