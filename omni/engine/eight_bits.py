"""Linear layers in 8 bits: half the bytes of bfloat16 to keep and to read, and products twice as fast on a GPU.

    kind = choose("8bit", device)                 # "fp8" on Ada and Hopper, else "int8"; "float" and others stay
    product = EightBits(weight, bias, kind)       # weight (N, K); nothing of it is kept
    y = product(x)                                # (…, K) → (…, N), in x's dtype

Each output of a weight has a scale of its own, and so has each row of an input: what a row gives does not depend on its
neighbours. int8 codes are scaled to ±127 and rounded; fp8 codes (e4m3: 4 bits of exponent, 3 of mantissa) to ±448. The
codes are multiplied as they are, and both scales go onto the sums:

    y[m, n] = x_scale[m] · weight_scale[n] · sum over k of x_codes[m, k] · weight_codes[n, k]

A device may lack a product: a small one is tried first, then the next. Where none works, codes are turned back into
floats for every product, which saves memory and no time. Run on a CPU only, where torch has the same products and fp8's
are very slow; on a GPU nothing here has been run yet.
"""

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

logger = logging.getLogger(__name__)

HIGHEST = {"int8": 127.0, "fp8": 448.0}
CODES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
ADA = (8, 9)  # the first compute capability that multiplies fp8
BLOCK = 16  # widths that these products take are multiples of it
MOST_REFUSED = 16  # rows: a GPU's int8 product wants more

Product = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class WeightsUnsupported(ValueError):
    """The device cannot multiply such weights; the message names those it can."""

    code = "weights_unsupported"


def choose(weights: str, device: torch.device) -> str:
    """A setting → "float", "int8" or "fp8" on this device. A CPU imitates fp8, for tests."""
    fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= ADA
    if weights == "8bit":
        return "fp8" if fast else "int8"
    if weights == "fp8" and not fast:
        if device.type != "cpu":
            raise WeightsUnsupported(
                f"fp8 weights need a GPU of Ada, Hopper or later; {_name(device)} is older. Select int8 or 8bit."
            )
        logger.warning("A CPU only imitates fp8 weights, far slower than any others: int8 is for CPUs.")
    return weights


def quantise(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """(…, K) → codes (…, K) and float32 scales (…, 1): x is about codes · scales. NaN stays NaN, in the scale."""
    x = x.float()
    scales = (x.abs().amax(-1, keepdim=True) / HIGHEST[kind]).clamp(min=1e-12)
    codes = (x / scales).clamp(-HIGHEST[kind], HIGHEST[kind])
    return (codes.round() if kind == "int8" else codes).to(CODES[kind]), scales


class EightBits:
    def __init__(self, weight: Tensor, bias: Tensor | None, kind: str) -> None:
        self.num_outputs, self.width = weight.shape
        codes, scales = quantise(weight, kind)
        lack = -self.width % BLOCK, -self.num_outputs % BLOCK
        self.codes = _pad(codes, *lack)  # (N, K), both rounded up
        self.scales = pad(scales, (0, 0, 0, lack[1]), value=1.0).T.contiguous()  # (1, N)
        self.bias, self.kind = bias, kind
        self.product = working(kind, weight.device)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        y = self._dequantised(x) if self.product is None else self._multiplied(x, self.product)
        return y if self.bias is None else y + self.bias

    def _multiplied(self, x: Tensor, product: Product) -> Tensor:
        codes, scales = quantise(x.reshape(-1, self.width), self.kind)
        y = product(_pad(codes, self.codes.shape[1] - self.width, 0), scales, self.codes, self.scales)
        return y[:, : self.num_outputs].to(x.dtype).view(*x.shape[:-1], self.num_outputs)

    def _dequantised(self, x: Tensor) -> Tensor:
        """The weights alone in 8 bits, made floats again for this one product."""
        codes = self.codes[: self.num_outputs, : self.width]
        return linear(x, codes.to(x.dtype)) * self.scales[0, : self.num_outputs].to(x.dtype)


def integer(x: Tensor, x_scales: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """x (M, K) and codes (N, K) int8, scales (M, 1) and (1, N) → (M, N) float32. Sums are exact."""
    num_rows = len(x)
    if num_rows <= MOST_REFUSED:
        x = _pad(x, 0, 2 * MOST_REFUSED - num_rows)
    return torch._int_mm(x, codes.T)[:num_rows] * x_scales * scales


def row_wise(x: Tensor, x_scales: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """fp8, both scales within the product: → (M, N) bfloat16 on a GPU, which gives nothing else."""
    dtype = torch.bfloat16 if x.is_cuda else torch.float32
    return torch._scaled_mm(x, codes.T, x_scales, scales, out_dtype=dtype, use_fast_accum=x.is_cuda)


def tensor_wise(x: Tensor, x_scales: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """fp8 on a GPU whose product takes one scale a tensor: the rows' scales come after it. → (M, N) float32."""
    one = torch.ones((), device=x.device)
    y = torch._scaled_mm(x, codes.T, one, one, out_dtype=torch.float32, use_fast_accum=x.is_cuda)
    return y * x_scales * scales


PRODUCTS: dict[str, tuple[Product, ...]] = {"int8": (integer,), "fp8": (row_wise, tensor_wise)}  # the fastest first


@cache
def working(kind: str, device: torch.device) -> Product | None:
    """The first product that this device computes, tried on few numbers."""
    ones = torch.ones(2 * BLOCK, 2 * BLOCK, device=device)
    codes, scales = quantise(ones, kind)
    for product in PRODUCTS[kind]:
        try:
            if torch.allclose(product(codes, scales, codes, scales.T.contiguous()).float(), ones @ ones, rtol=0.01):
                return product
        except RuntimeError as exc:
            logger.warning("%s products, %s, do not work on %s: %s", kind, product.__name__, device, exc)
    logger.warning("%s weights are turned back into floats for every product on %s.", kind, device)
    return None


def _pad(codes: Tensor, columns: int, rows: int) -> Tensor:
    """More columns and rows of zeros; as bytes, because not every operation knows fp8."""
    if not columns and not rows:
        return codes
    return pad(codes.view(torch.uint8), (0, columns, 0, rows)).view(codes.dtype)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)
