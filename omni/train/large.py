"""Both stages at real size, on one GPU or several: `omni train stage1|stage2 --shape 8b`.

    omni train stage1 --shape 8b --profile --steps 20                  # random weights: how fast is it here?
    torchrun --nproc-per-node 4 -m omni.cli train stage1 --shape 8b --llm LLAMA --whisper large-v3.pt \\
        --manifest data/manifest.jsonl --output runs/8b --epochs 3

As in the paper (arXiv 2409.06666, 4.1): stage 1 trains adaptor and LLM (or low-rank deltas of it), stage 2 the unit
decoder by CTC on the states that inference uses; the encoder is frozen. Products run in bf16; weights are kept in
--dtype. With several processes every block's weights, gradients and moments are sharded (PyTorch's FSDP2). A step's
batch follows from the seed and the step (batches.py), and a checkpoint holds the step, so a killed run loses at most
what it learnt since its last checkpoint, and repeats nothing that it kept.
"""

import argparse
import functools
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from omni.model import config
from omni.model.adaptor import Adaptor
from omni.model.encoder import Encoder
from omni.model.prompt import SPEECH
from omni.model.tiny import sinusoids
from omni.model.unit_decoder import UnitDecoder
from omni.train import keep, manifest
from omni.train.batches import Batch, ManifestBatches, RandomBatches, read_rows
from omni.train.manifest import ManifestError
from omni.train.metrics import Metrics
from omni.train.shapes import SHAPES, Shape

logger = logging.getLogger(__name__)
RATES = {"stage1": 2e-5, "stage2": 2e-4}  # the paper's peaks
WARM_UP = 0.03
OPTIMISERS = ("adamw", "adafactor", "adamw8bit")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


# The model


class SpeechToText(nn.Module):
    """Encoder (frozen), adaptor and LLM."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        described = config.parse(shape.published())
        self.encoder = Encoder(shape.encoder).requires_grad_(False)
        self.adaptor = Adaptor(described)
        self.llm = LlamaForCausalLM(LlamaConfig(**shape.llm))

    def states(self, batch: Batch) -> tuple[Tensor, list[int]]:
        """The states that predict the answers' tokens, end included: (sum of their lengths, D), and the lengths."""
        with torch.no_grad():
            frames = self.encoder(batch.mel, batch.lengths)
        heard = self.adaptor(frames)
        embed = functools.partial(_embed, self.llm.model.embed_tokens)
        said = iter([each[:length] for each, length in zip(heard, (batch.lengths // 10).tolist(), strict=True)])
        rows, where = [], []
        for ids, answer in zip(batch.prompts, batch.answers, strict=True):
            prompt = splice(embed, ids, said)
            rows.append(torch.cat((prompt, embed(answer[:-1]))))
            where.append(range(len(prompt) - 1, len(prompt) - 1 + len(answer)))
        inputs = pad_sequence(rows, batch_first=True)  # right-padded and causal: no mask
        hidden = self.llm.model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        chosen = [hidden[i, places.start : places.stop] for i, places in enumerate(where)]
        return torch.cat(chosen), [len(each) for each in chosen]

    def forward(self, batch: Batch) -> Tensor:
        """Mean next-token loss over the answers' tokens."""
        states, _ = self.states(batch)
        wanted = torch.tensor([token for answer in batch.answers for token in answer], device=states.device)
        return F.cross_entropy(self.llm.lm_head(states).float(), wanted)


class SpeechToUnits(nn.Module):
    """The same, frozen, and the unit decoder."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        described = config.parse(shape.published())
        self.thinker = SpeechToText(shape).requires_grad_(False)
        self.decoder = UnitDecoder(described.unit_decoder, described.llm.width, shape.num_units, shape.upsample)
        self.blank = shape.num_units

    def forward(self, batch: Batch) -> Tensor:
        """CTC per unit."""
        with torch.no_grad():
            states, lengths = self.thinker.states(batch)
        hidden = pad_sequence(states.split(lengths), batch_first=True)
        log_probs = self.decoder(hidden).float().log_softmax(-1).transpose(0, 1)  # (P, B, classes)
        counts = [len(units) for units in batch.units]
        loss = F.ctc_loss(
            log_probs,
            torch.tensor([unit for units in batch.units for unit in units], device=states.device),
            torch.tensor([length * self.decoder.upsample for length in lengths]),
            torch.tensor(counts),
            self.blank,
            reduction="sum",
            zero_infinity=True,
        )
        return loss / sum(counts)


def splice(embed: Callable[[list[int]], Tensor], ids: list[int], said: Iterator[Tensor]) -> Tensor:
    """A prompt's ids → (P, D), the next of `said` (T, D) in every place of SPEECH."""
    parts: list[Tensor] = []
    for is_speech, run in groupby(ids, key=lambda token: token == SPEECH):
        tokens = list(run)
        parts += [next(said) for _ in tokens] if is_speech else [embed(tokens)]
    return torch.cat([part.to(parts[0].dtype) for part in parts])  # a template begins with a token


def _embed(table: nn.Embedding, ids: list[int]) -> Tensor:
    return table(torch.tensor(ids, dtype=torch.long, device=table.weight.device))


def build(stage: str, shape: Shape, device: torch.device, dtype: torch.dtype, seed: int = 0) -> nn.Module:
    """Random weights, made on the device: nothing of this size passes through the host."""
    with torch.device("meta"):
        model = (SpeechToText if stage == "stage1" else SpeechToUnits)(shape)
    model = model.to(dtype).to_empty(device=device)
    draw = torch.Generator(device).manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, 0.0, 0.02, generator=draw)
        else:
            nn.init.constant_(weight, 0.0 if name.endswith("bias") else 1.0)
    for module in model.modules():
        if isinstance(module, Encoder):
            module.positional_embedding.copy_(sinusoids(shape.encoder.num_positions, shape.encoder.width))
        if hasattr(module, "rotary_emb"):  # its frequencies are a buffer that was never computed
            llm_config = module.config
            with torch.device(device):
                module.rotary_emb = type(module.rotary_emb)(llm_config)
    return model


def thinker(model: nn.Module) -> SpeechToText:
    return model if isinstance(model, SpeechToText) else model.thinker  # type: ignore[return-value]


def load_base(model: nn.Module, llm: Path, whisper: Path, adaptor: Path | None) -> None:
    """A Llama's folder, a Whisper .pt and, where there is one, stage 1's result, into the model."""
    from omni.model.checkpoint import load_whisper

    part = thinker(model)
    part.encoder.load_state_dict(load_whisper(whisper).state_dict())
    found = LlamaForCausalLM.from_pretrained(llm, dtype=part.llm.dtype)
    part.llm.load_state_dict(found.state_dict())
    if adaptor is not None:
        from safetensors.torch import load_file

        missing, unexpected = model.load_state_dict(load_file(adaptor), strict=False)
        if unexpected or any(name.startswith(("adaptor.", "thinker.adaptor.")) for name in missing):
            raise ManifestError(f"{adaptor} is not stage 1's: unexpected {unexpected[:3]}, missing {missing[:3]}.")


def choose_trained(model: nn.Module, trained: str, rank: int, checkpointing: bool) -> None:
    """Full or low-rank; with gradient checkpointing, activations are computed again instead of kept."""
    part = thinker(model)
    if isinstance(model, SpeechToText):
        if trained == "lora":
            from omni.train.low_rank import add_deltas

            part.llm.requires_grad_(False)
            device, dtype = part.llm.device, part.llm.dtype
            for delta in add_deltas(part.llm, rank).values():
                delta.to(device=device, dtype=dtype)
        if checkpointing:
            part.llm.activation_checkpointing_enable()
            part.llm.train()
    else:
        part.eval()


# Several processes


@contextmanager
def processes() -> Iterator[tuple[int, int, torch.device]]:
    """(rank, how many, device) under torchrun, or (0, 1, …) alone. Always leaves the group."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if ranks == 1:
        yield 0, 1, device
        return
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield torch.distributed.get_rank(), ranks, device
    finally:
        torch.distributed.destroy_process_group()


def shard(model: nn.Module, ranks: int, device: torch.device) -> nn.Module:
    """Every block a unit of its own, then the rest: weights, gradients and moments lie in `ranks` parts."""
    if ranks == 1:
        return model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (ranks,))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    blocks = [*thinker(model).llm.model.layers, *thinker(model).encoder.blocks]
    if isinstance(model, SpeechToUnits):
        blocks += model.decoder.layers
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)  # in place
    return model


# The training


def optimiser_of(name: str, parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """adamw: two moments a weight; adafactor: one row and one column; adamw8bit: two bytes (needs bitsandbytes)."""
    if name == "adafactor":
        return torch.optim.Adafactor(parameters, lr=rate)
    if name == "adamw8bit":
        try:
            import bitsandbytes
        except ImportError as exc:
            raise ManifestError("adamw8bit needs bitsandbytes and a CUDA device: pip install bitsandbytes") from exc
        return bitsandbytes.optim.AdamW8bit(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    fused = parameters[0].is_cuda
    return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=fused)


def rate_at(step: int, steps: int, peak: float) -> float:
    """3 % warm-up, then a cosine to zero."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def take_step(
    model: nn.Module, optimiser: torch.optim.Optimizer, batch: Batch, device: torch.device, rate: float
) -> float:
    """One update; returns the loss."""
    moved = Batch(
        batch.mel.to(device, next(thinker(model).encoder.parameters()).dtype),
        batch.lengths.to(device),
        batch.prompts,
        batch.answers,
        batch.units,
    )
    for group in optimiser.param_groups:
        group["lr"] = rate
    with torch.autocast(device.type, torch.bfloat16):
        loss = model(moved)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimiser.step()
    return float(loss.detach())


def save(model: nn.Module, optimiser: torch.optim.Optimizer, step: int, folder: Path, rank: int) -> None:
    """training.pt, to go on from, and trained.safetensors: what was trained, by name. Whole or not at all."""
    weights, moments = _whole_state(model, optimiser)
    if rank == 0:
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        kept = {name: x.contiguous() for name, x in weights.items() if name in trained}
        keep.tensors(folder / "trained.safetensors", {name: x.to(torch.bfloat16) for name, x in kept.items()})
        keep.state(folder / "training.pt", {"model": kept, "optimiser": moments, "step": step})
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def _whole_state(model: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from torch.distributed.checkpoint import state_dict

    options = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
    return state_dict.get_state_dict(model, optimiser, options=options)  # type: ignore[return-value]


def resume(model: nn.Module, optimiser: torch.optim.Optimizer, folder: Path) -> int:
    """The step to go on with."""
    from torch.distributed.checkpoint import state_dict

    if not (folder / "training.pt").exists():
        return 0
    saved = torch.load(folder / "training.pt", weights_only=True)
    options = state_dict.StateDictOptions(full_state_dict=True, strict=False)
    state_dict.set_state_dict(
        model, optimiser, model_state_dict=saved["model"], optim_state_dict=saved["optimiser"], options=options
    )
    return saved["step"]


def train(args: argparse.Namespace) -> int:
    with processes() as (rank, ranks, device):
        shape = SHAPES[args.shape]
        batches, steps = find_batches(args, shape, rank, ranks)
        model = build(args.stage, shape, device, DTYPES[args.dtype], args.seed)
        if args.llm:
            load_base(model, args.llm, args.whisper, args.start)
        choose_trained(model, args.trained, args.rank, not args.no_checkpointing)
        model = shard(model, ranks, device)
        peak = args.rate or RATES[args.stage]
        optimiser = optimiser_of(args.optimiser, [p for p in model.parameters() if p.requires_grad], peak)
        begun = resume(model, optimiser, args.output)
        metrics = Metrics(args.output / "metrics.csv", begun) if rank == 0 else None
        for step in tqdm(range(begun, steps), initial=begun, total=steps, desc=args.stage, disable=rank > 0 or None):
            start, batch = time.monotonic(), batches(step)
            rate = rate_at(step, steps, peak)
            loss = take_step(model, optimiser, batch, device, rate)
            if metrics is not None:
                speed = batch.num_positions * ranks / (time.monotonic() - start)
                metrics.row(step + 1, {"loss": loss, "rate": rate, "tokens_per_second": speed})
            if (step + 1) % args.save_every == 0 or step + 1 == steps:
                save(model, optimiser, step + 1, args.output, rank)
    return 0


def find_batches(args: argparse.Namespace, shape: Shape, rank: int, ranks: int) -> tuple[Callable[[int], Batch], int]:
    """Where batches come from, and how many steps there are."""
    if args.manifest is None:
        return RandomBatches(shape, args.batch, args.input == "padded", seed=args.seed * ranks + rank), args.steps or 20
    from transformers import AutoTokenizer

    rows, bad = read_rows(args.manifest, shape.num_units, args.stage == "stage2", args.on_bad)
    tokenizer = AutoTokenizer.from_pretrained(args.llm)
    padded = args.input == "padded"
    batches = ManifestBatches(rows, tokenizer, shape, args.batch, padded, args.seed, rank, ranks)
    steps = args.steps or args.epochs * batches.steps_per_epoch
    logger.info("%d rows (%d bad ones skipped), %d steps an epoch", len(rows), len(bad), batches.steps_per_epoch)
    return batches, steps


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--profile", action="store_true", help="random weights and data: measure and extrapolate")
    parser.add_argument("--steps", type=int, help="(default: all epochs; 20 in a profile)")
    parser.add_argument("--batch", type=int, default=8, help="samples a process and step (default: %(default)s)")
    parser.add_argument("--input", choices=("padded", "true-length"), help="30 s as published, or as long as it is "
                        "(default: true-length; a profile measures both)")  # fmt: skip
    parser.add_argument("--trained", choices=("full", "lora"), default="full", help="the LLM (default: %(default)s)")
    parser.add_argument("--rank", type=int, default=64, help="of the deltas (default: %(default)s)")
    parser.add_argument("--optimiser", choices=OPTIMISERS, default="adafactor", help="adafactor and adamw8bit need "
                        "little memory (default: %(default)s)")  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the weights; products are always in "
                        "bfloat16 (default: %(default)s)")  # fmt: skip
    parser.add_argument("--no-checkpointing", action="store_true", help="keep the LLM's activations in stage 1")
    parser.add_argument("--rate", type=float, help="peak learning rate (default: the paper's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the profile to this file")
    data = parser.add_argument_group("training for real")
    data.add_argument("--manifest", type=Path, help="spoken instructions and answers, one JSON object a line")
    data.add_argument("--on-bad", choices=manifest.ON_BAD, default="refuse", help="bad rows (default: %(default)s)")
    data.add_argument("--llm", type=Path, help="folder of a Llama of this shape, with its tokenizer")
    data.add_argument("--whisper", type=Path, help="Whisper's .pt")
    data.add_argument("--start", type=Path, help="stage 1's trained.safetensors, for stage 2")
    data.add_argument("--output", type=Path, help="folder for checkpoints and metrics.csv; a run goes on from there")
    data.add_argument("--epochs", type=int, default=3)
    data.add_argument("--save-every", type=int, default=500, metavar="STEPS")


def main(args: argparse.Namespace) -> int:
    try:
        if args.profile:
            from omni.train.profile import profile

            return profile(args)
        needed = [name for name in ("output", "manifest", "llm", "whisper") if getattr(args, name) is None]
        if needed:
            raise ManifestError(f"Training needs {', '.join('--' + name for name in needed)} (or ask for --profile).")
        args.input = args.input or "true-length"
        return train(args)
    except ManifestError as exc:
        print(f"omni train {args.stage}: {exc}", file=sys.stderr)
        return 2
