"""Answers for weights that say nothing: random ones supply neither lengths nor units. No torch.

The numbers are the published ones: 39.5 words an answer at about 1.27 tokens, 553.6 units of 19.0 s of speech, that is
11 units a token; about every seventh token (punctuation) has none.
"""

import math
import random
from dataclasses import dataclass
from itertools import chain

MEAN_TOKENS, MAX_TOKENS, SPREAD = 50, 256, 0.5  # of a lognormal's logarithm
UNITS_PER_TOKEN, SILENT = 11.0, 0.15


@dataclass(frozen=True)
class Trace:
    """The units of each token of one answer."""

    units: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        return len(self.units)

    def until(self, i: int) -> tuple[int, ...]:
        """All units up to token i's."""
        return tuple(chain.from_iterable(self.units[: i + 1]))


def trace(seed: int, num_units: int = 1000, upsample: int = 25, num_tokens: int | None = None) -> Trace:
    """The answer number `seed`: the same on every machine."""
    draw = random.Random(f"trace {seed}")
    if num_tokens is None:
        mu = math.log(MEAN_TOKENS) - SPREAD**2 / 2
        num_tokens = min(max(4, round(draw.lognormvariate(mu, SPREAD))), MAX_TOKENS)
    mean = UNITS_PER_TOKEN / (1 - SILENT)
    answer = []
    for _ in range(num_tokens):
        count = 0 if draw.random() < SILENT else min(max(1, round(draw.gauss(mean, 3.0))), upsample)
        answer.append(tuple(draw.randrange(num_units) for _ in range(count)))
    return Trace(tuple(answer))
