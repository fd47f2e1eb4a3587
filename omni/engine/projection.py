"""Linear layers over the same input → one product, in whatever form the device multiplies best.

    project = Projecting("8bit", device)
    qkv = project([attention.q_proj, attention.k_proj, attention.v_proj])
    y = qkv(x)                                  # (…, K) → (…, N), the layers' outputs side by side

On a CPU the weights are packed once, in the layout that the processor's matrix kernels read (measured: half the time of
an unpacked product of 2 to 100 rows); or kept in 8 bits, each row of the input scaled by itself.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from omni.engine import eight_bits
from omni.engine.eight_bits import HIGHEST, EightBits

Projection = Callable[[Tensor], Tensor]
WEIGHTS = ("float", "int8", "fp8", "8bit")


class Projecting:
    """`release`: the layers lose their weights once the product has its own, and cannot be called any more."""

    def __init__(self, weights: str, device: torch.device, release: bool = False) -> None:
        self.weights, self.release = eight_bits.choose(weights, device), release

    def __call__(self, layers: Sequence[nn.Linear], keep: bool = False) -> Projection:
        """`keep`: these layers' weights are used elsewhere as well."""
        weight = layers[0].weight if len(layers) == 1 else torch.cat([each.weight for each in layers])
        bias = None if layers[0].bias is None else torch.cat([each.bias for each in layers])
        packed = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
        if self.weights == "float" and not packed:
            _share(weight, layers)
            return lambda x: linear(x, weight, bias)
        projection = self._own(weight.detach(), bias, packed)
        if self.release and not keep:
            for layer in layers:
                layer.weight.data = weight.new_empty(0)
        return projection

    def _own(self, weight: Tensor, bias: Tensor | None, packed: bool) -> Projection:
        if self.weights == "float":
            return _packed(weight, bias)
        if self.weights == "int8" and packed:
            return _packed_int8(weight, bias)
        return EightBits(weight, bias, self.weights)


def _packed(weight: Tensor, bias: Tensor | None) -> Projection:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    product = torch.ops.mkldnn._linear_pointwise
    return lambda x: product(x, packed, bias, "none", [], "")


def _share(weight: Tensor, layers: Sequence[nn.Linear]) -> None:
    """The layers become views of the one weight: a large model is on a GPU only once."""
    for layer, own in zip(layers, weight.split([len(each.weight) for each in layers]), strict=True):
        layer.weight.data = own


def _packed_int8(weight: Tensor, bias: Tensor | None) -> Projection:
    """The sums of EightBits, from packed weights: on a CPU three times as fast for a large head (bench/RESULTS.md)."""
    weight, highest = weight.float(), HIGHEST["int8"]
    scales = (weight.abs().amax(1) / highest).clamp(min=1e-12)
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    engine, torch.backends.quantized.engine = torch.backends.quantized.engine, "fbgemm"  # the one with this product
    try:
        packed = torch.ops.quantized.linear_prepack(torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8))
    finally:
        torch.backends.quantized.engine = engine
    product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32

    def run(x: Tensor) -> Tensor:
        scale = x.float().abs().amax(-1, keepdim=True).clamp(min=1e-12)
        y = product(x.float() / scale, 1 / highest, 128, packed) * scale
        return (y if bias is None else y + bias).to(x.dtype)

    return run
