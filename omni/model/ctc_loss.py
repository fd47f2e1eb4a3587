"""The unit decoder's training target: how far hidden states are spread, and the CTC loss. Inference needs neither.

    positions = upsample_index(num_tokens, num_positions(num_tokens, num_units, 25))   # (P,)
    logits = unit_decoder.output_proj(unit_decoder.run(unit_decoder.input_proj(hidden)[positions][None], …))
    loss = ctc_loss(logits, lengths, units, unit_lengths, blank=1000)

Source: ictnlp/LLaMA-Omni, speech_generator.py (its forward).
"""

import torch
from torch import Tensor
from torch.nn import functional


def num_positions(num_tokens: int, num_units: int, upsample: int) -> int:
    """Positions that an answer is spread over: 25 a token as in inference, or more where its speech needs more."""
    return max(num_tokens * upsample, num_units)


def upsample_index(num_tokens: int, num_positions: int) -> Tensor:
    """(P,) int64: the token that each position takes its state from. Plain repetition where P = 25 · tokens."""
    return torch.arange(num_positions) * num_tokens // num_positions


def ctc_loss(logits: Tensor, lengths: Tensor, units: Tensor, unit_lengths: Tensor, blank: int) -> Tensor:
    """logits (B, P, classes) of which `lengths` (B,) count, units (B, N) of which `unit_lengths` count → loss per unit.

    What lies past the lengths is not looked at. An answer whose units do not fit its positions adds nothing.
    """
    log_probs = logits.float().log_softmax(dim=-1).transpose(0, 1)  # (P, B, classes)
    targets = units.clamp(min=0)
    total = functional.ctc_loss(
        log_probs, targets, lengths, unit_lengths, blank=blank, reduction="sum", zero_infinity=True
    )
    return total / unit_lengths.sum()
