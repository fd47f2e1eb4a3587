"""What the hardware gives at best, measured in the same run: copying memory, and multiplying matrices.

ceilings = measure(torch.device("cpu"), torch.float32)
ceilings.bandwidth, ceilings.products       # bytes/s read plus written; FLOP/s
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

COPY_BYTES = {"cpu": 256 * 2**20, "cuda": 2 * 2**30}  # far more than any cache
PRODUCT_SIZE = {"cpu": 1024, "cuda": 8192}
ROUNDS = 7


@dataclass(frozen=True)
class Ceilings:
    bandwidth: float
    products: float

    def seconds(self, num_bytes: float, flops: float) -> float:
        """The least time in which this work can be done: whichever of the two takes longer."""
        return max(num_bytes / self.bandwidth, flops / self.products)


@torch.inference_mode()
def measure(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """The best of some rounds. Random numbers: zeros would multiply faster."""
    source = torch.randint(0, 255, (COPY_BYTES[device.type],), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copying = best(lambda: target.copy_(source), device)
    size = PRODUCT_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    multiplying = best(lambda: torch.mm(a, b), device)
    return Ceilings(2 * source.numel() / copying, 2 * size**3 / multiplying)


def best(run: Callable[[], object], device: torch.device) -> float:
    """The least seconds of some runs after one to warm up."""
    times = []
    for _ in range(1 + ROUNDS):
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
