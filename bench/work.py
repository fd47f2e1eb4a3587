"""What one decode step has to read and multiply, from the shapes alone: the work behind a hardware line.

A step of B rows reads all weights of the LLM but its embedding table, the unit decoder's, and every row's keys and
values; each row is one position of the LLM and `upsample` positions of the unit decoder, whose input projection and
first q, k and v are needed once per token.
"""

from dataclasses import dataclass

from torch import nn

from omni.model.config import BlockConfig
from omni.model.omni import Omni


@dataclass(frozen=True)
class StepWork:
    num_bytes: float
    flops: float


def decode_step(
    omni: Omni, batch: int, context: float, spoken: float, weight_bytes: float, state_bytes: float
) -> StepWork:
    """`batch` rows with `context` positions behind them, `spoken` of them answer; bytes of a weight, and of a key."""
    config, decoder = omni.config, omni.unit_decoder
    head = config.vocab_size * config.llm.width
    text, units = sum(map(_size, omni.llm.layers)) + head, _size(decoder)
    num_bytes = (text + units) * weight_bytes
    num_bytes += batch * context * _state(config.llm) * state_bytes
    shared = _size(decoder.input_proj) + 3 * config.unit_decoder.width**2  # once per token, and kept once
    copies = spoken * (1 + (config.unit_decoder.num_layers - 1) * config.upsample) / config.unit_decoder.num_layers
    num_bytes += batch * copies * _state(config.unit_decoder) * state_bytes
    flops = 2.0 * text + 2.0 * shared + 2.0 * (units - shared) * config.upsample
    flops += _attention(config.llm, 1, context) + _attention(
        config.unit_decoder, config.upsample, spoken * config.upsample
    )
    return StepWork(num_bytes, batch * flops)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _state(config: BlockConfig) -> int:
    """Numbers kept per position: keys and values of all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim


def _attention(config: BlockConfig, rows: float, context: float) -> float:
    """Scores and weighted sums: two products of (rows, d) with (context, d) per head and layer."""
    return 4.0 * rows * context * config.num_heads * config.head_dim * config.num_layers
