"""CTC's collapse: raw classes per position → units. No torch."""

from collections.abc import Iterable


class Collapse:
    """Merge equal neighbours, then drop blanks; remembers the last class, so that streamed equals whole.

    collapse = Collapse(blank=1000)
    units = collapse([7, 7, 1000, 7])     # [7, 7]
    units += collapse([7, 3])             # [3]: the 7 goes on from before
    """

    def __init__(self, blank: int) -> None:
        self.blank = blank
        self.previous = -1

    def __call__(self, classes: Iterable[int]) -> list[int]:
        units = []
        for each in classes:
            if each != self.previous and each != self.blank:
                units.append(each)
            self.previous = each
        return units


def collapse(classes: Iterable[int], blank: int) -> list[int]:
    """The whole sequence at once."""
    return Collapse(blank)(classes)
