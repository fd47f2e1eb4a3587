"""Rows of a conformance run: what was compared, how far apart it was, what was allowed. Knows no model."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import ArrayLike

PASSED, FAILED, NOT_CHECKED = "passed", "FAILED", "not checked"


@dataclass(frozen=True)
class Row:
    file: str
    check: str
    result: str
    worst: float | None = None  # largest absolute difference, or the number of elements that differ
    tolerance: float | None = None
    note: str = ""

    def __str__(self) -> str:
        measured = "" if self.worst is None else f"{self.worst:9.2e} of {self.tolerance:.0e}"
        if self.tolerance == 0 and self.worst is not None:
            measured = "equal" if self.worst == 0 else f"{self.worst:g} differ"
        return f"{self.result:11}  {self.file:38}  {self.check:44}  {measured:19}  {self.note}".rstrip()


@dataclass
class Report:
    """close and equal compare and keep a Row; `show` gets each row as it comes."""

    show: Callable[[Row], None] = lambda row: None
    rows: list[Row] = field(default_factory=list)

    def close(self, file: str, check: str, ours: ArrayLike, theirs: ArrayLike, tolerance: float) -> None:
        a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
        if a.shape != b.shape:
            self._add(Row(file, check, FAILED, None, tolerance, f"shape {a.shape}, expected {b.shape}"))
            return
        worst = float(np.abs(a - b).max(initial=0.0))  # NaN stays NaN, and fails
        self._add(Row(file, check, PASSED if worst <= tolerance else FAILED, worst, tolerance))

    def equal(self, file: str, check: str, ours: ArrayLike, theirs: ArrayLike, note: str = "") -> None:
        a, b = np.asarray(ours), np.asarray(theirs)
        if a.shape != b.shape:
            self._add(Row(file, check, FAILED, None, 0.0, f"shape {a.shape}, expected {b.shape}"))
            return
        different = np.atleast_1d(a != b)
        if different.any() and not note:
            at = np.argwhere(different)[0]
            note = f"first at {at.tolist()}: {np.atleast_1d(a)[tuple(at)]!r}, expected {np.atleast_1d(b)[tuple(at)]!r}"
        count = int(different.sum())
        self._add(Row(file, check, FAILED if count else PASSED, float(count), 0.0, note[:200]))

    def fail(self, file: str, check: str, why: str) -> None:
        self._add(Row(file, check, FAILED, note=why))

    def skip(self, file: str, check: str, why: str) -> None:
        self._add(Row(file, check, NOT_CHECKED, note=why))

    def count(self, result: str) -> int:
        return sum(row.result == result for row in self.rows)

    def as_json(self) -> dict:
        counts = {name: self.count(name) for name in (PASSED, FAILED, NOT_CHECKED)}
        return {"counts": counts, "rows": [asdict(row) for row in self.rows]}

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        self.show(row)
