"""8-bit products: the same sums as in double precision, whatever the shapes; refused where they cannot be."""

import pytest
import torch

from omni.engine import eight_bits
from omni.engine.eight_bits import CODES, HIGHEST, PRODUCTS, EightBits, WeightsUnsupported, choose, quantise

KINDS = ("int8", "fp8")
EVERY_PRODUCT = [(kind, product) for kind in KINDS for product in PRODUCTS[kind]]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_quantised_comes_back_within_half_a_step(kind: str):
    """int8: half a step of the row's largest. fp8: 1/16 of each number, or half the smallest step there is."""
    x = numbers(7, 64) * torch.logspace(-6, 6, 7)[:, None]
    codes, scales = quantise(x, kind)
    assert codes.dtype is CODES[kind] and scales.shape == (7, 1) and scales.dtype is torch.float32
    error = (codes.float() * scales - x).abs()
    largest = x.abs().amax(-1, keepdim=True)
    bound = largest / HIGHEST[kind] / 2 if kind == "int8" else torch.maximum(x.abs() / 16, scales * 2**-10)
    assert (error <= bound * 1.001).all()
    torch.testing.assert_close((codes.float() * scales).abs().amax(-1, keepdim=True), largest)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros_and_nan_is_not_hidden(kind: str):
    """A row of nothing gives nothing; a row with NaN or infinity gives no finite number, and its neighbour is fine."""
    product = EightBits(numbers(16, 32), None, kind)
    x = torch.zeros(3, 32)
    x[1, 5], x[2, 5] = torch.nan, torch.inf
    y = product(x)
    assert (y[0] == 0).all() and not y[1:].isfinite().any()


@pytest.mark.parametrize(("kind", "product"), EVERY_PRODUCT, ids=lambda each: getattr(each, "__name__", each))
@pytest.mark.parametrize("rows", [1, 16, 17, 40])
def test_every_product_equals_the_sums_in_double_precision(monkeypatch, kind: str, product, rows: int):
    """Codes times codes, then the scales: slow, obvious. Widths are no multiples of what a GPU's kernels want."""
    monkeypatch.setattr(eight_bits, "working", lambda *_: product)
    weight, bias, x = numbers(50, 70), numbers(50, seed=1), numbers(rows, 70, seed=2)
    (codes, scales), (x_codes, x_scales) = quantise(weight, kind), quantise(x, kind)
    wanted = (x_codes.double() * x_scales) @ (codes.double() * scales).T + bias
    given = EightBits(weight, bias, kind)(x)
    torch.testing.assert_close(given, wanted.float(), rtol=1e-5, atol=1e-4)
    exact = x @ weight.T + bias
    assert (given - exact).norm() / exact.norm() < (0.02 if kind == "int8" else 0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_see_its_neighbours(kind: str, dtype: torch.dtype):
    """Beside a row a thousand times as large, in whatever shape the rows come; the input's dtype comes out."""
    product = EightBits(numbers(96, 64), numbers(96, seed=1).to(dtype), kind)
    x = numbers(5, 64, seed=2).to(dtype)
    x[3] *= 100
    together = product(x)
    assert together.dtype is dtype
    alone = torch.cat([product(row[None]) for row in x])
    if kind == "int8":
        assert torch.equal(alone, together)
    torch.testing.assert_close(alone, together, rtol=1e-2, atol=1e-3)  # floats are added in another order
    assert torch.equal(product(x.view(5, 1, 64)), together.view(5, 1, 96))


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_without_the_product_gets_floats(monkeypatch, caplog, kind: str):
    """Every product fails: the codes are turned back, the log says so, and only the weights are rounded."""
    fails = tuple(lambda *_: (_ for _ in ()).throw(RuntimeError("no kernel")) for _ in range(2))
    for each in fails:
        each.__name__ = "fails"
    monkeypatch.setitem(PRODUCTS, kind, fails)
    monkeypatch.setattr(eight_bits, "working", eight_bits.working.__wrapped__)
    weight, x = numbers(50, 70), numbers(3, 70, seed=2)
    product = EightBits(weight, None, kind)
    assert product.product is None and caplog.text.count("no kernel") == 2 and "turned back" in caplog.text
    codes, scales = quantise(weight, kind)
    torch.testing.assert_close(product(x), x @ (codes.float() * scales).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("capability", "setting", "wanted"),
    [
        ((9, 0), "8bit", "fp8"),
        ((8, 9), "8bit", "fp8"),
        ((8, 6), "8bit", "int8"),
        ((9, 0), "int8", "int8"),
        ((9, 0), "float", "float"),
        (None, "8bit", "int8"),
        (None, "fp8", "fp8"),
    ],
    ids=str,
)
def test_8bit_is_what_the_device_multiplies_best(monkeypatch, capability, setting: str, wanted: str):
    """fp8 from Ada on, int8 before and on a CPU, which imitates fp8 where it is asked to."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose(setting, torch.device("cuda" if capability else "cpu")) == wanted


def test_fp8_on_an_older_gpu_is_refused_with_what_would_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A100")
    with pytest.raises(WeightsUnsupported, match=r"A100 is older\. Select int8 or 8bit\."):
        choose("fp8", torch.device("cuda"))


@pytest.mark.parametrize("kind", KINDS)
def test_half_the_bytes_of_bfloat16(kind: str):
    """A byte a weight, and four for the scale of a whole row."""
    weight = numbers(320, 256)
    assert EightBits(weight, None, kind).nbytes == 320 * 256 + 4 * 320 < 0.51 * weight.bfloat16().nbytes
