"""The LLM a training starts from, as a Hugging Face folder: `omni train llm --output runs/mini/llm`.

`smollm2` is SmolLM2-135M-Instruct as a package carries it; `tiny` a Llama of 64 × 2 with seeded random weights and a
byte tokenizer, which learns nothing worth saying but runs through every stage in seconds. Any other Llama's folder with
a chatml prompt will do as well: put it at the run's llm/.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import torch

from omni.train.shapes import SHAPES

logger = logging.getLogger(__name__)
BYTES: dict[str, Any] = {"bos_token_id": 257, "eos_token_id": 258}  # of the byte tokenizer


def write_tiny(folder: Path, seed: int = 0) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from omni.model.tiny import byte_tokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        llm = LlamaForCausalLM(LlamaConfig(**SHAPES["small"].llm, **BYTES))
    byte_tokenizer().save_pretrained(folder)
    llm.save_pretrained(folder)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="folder of the LLM, usually RUN/llm")
    parser.add_argument("--size", choices=("smollm2", "tiny"), default="smollm2", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> int:
    if (args.output / "config.json").exists():
        logger.info("%s is there already.", args.output)
        return 0
    if args.size == "tiny":
        write_tiny(args.output, args.seed)
    else:
        from omni.train.stage1 import load_llm

        load_llm(args.output, torch.float32)
    return 0
