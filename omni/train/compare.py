"""Two checkpoints asked the same questions: how far apart they are, and how sure that is.

    difference(ours, theirs, seed=0)["fitting"]     # {"value": 0.12, "low": 0.04, "high": 0.2}

A paired bootstrap over the questions, seeded.
"""

from collections.abc import Callable, Sequence

import numpy as np

from omni.train import words
from omni.train.measures import Answer

RESAMPLES = 2000

# name: the (part, whole) of one answer; a measure is the sum of parts over the sum of wholes
MEASURES: dict[str, Callable[[Answer], tuple[float, float]]] = {
    "fitting": lambda answer: (answer.fitting, 1),
    "fitting_heard": lambda answer: (answer.fitting_heard, 1),
    "fitting_text": lambda answer: _known(answer.fitting_written),
    "asr_wer": lambda answer: (_word_errors(answer), len(words.words(answer.text))),
    "mos": lambda answer: _known(answer.mos),
}


def difference(ours: Sequence[Answer], theirs: Sequence[Answer], seed: int = 0) -> dict[str, dict[str, float] | None]:
    """Ours minus theirs, with the middle 95 % over resampled questions; None for what was not measured."""
    assert [each.id for each in ours] == [each.id for each in theirs], "the same questions in the same order"
    chosen = np.random.default_rng(seed).integers(len(ours), size=(RESAMPLES, len(ours)))
    return {name: _difference(measure, ours, theirs, chosen) for name, measure in MEASURES.items()}


def _difference(measure, ours: Sequence[Answer], theirs: Sequence[Answer], chosen: np.ndarray) -> dict | None:
    a, b = (np.array([measure(each) for each in answers], float) for answers in (ours, theirs))  # (n, 2)
    if not a[:, 1].sum() or not b[:, 1].sum():
        return None
    sums = a[chosen].sum(1), b[chosen].sum(1)  # (RESAMPLES, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = sums[0][:, 0] / sums[0][:, 1] - sums[1][:, 0] / sums[1][:, 1]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    value = a[:, 0].sum() / a[:, 1].sum() - b[:, 0].sum() / b[:, 1].sum()
    return {"value": float(value), "low": float(low), "high": float(high)}


def _known(value: float | None) -> tuple[float, float]:
    return (0.0, 0.0) if value is None else (float(value), 1.0)


def _word_errors(answer: Answer) -> int:
    return words.errors(words.words(answer.heard), words.words(answer.text))
