"""What the slots still remember, so that a prompt's beginning is read once: a system prompt, a session's earlier turns.

    place = prefixes.place(keys, free)      # Place(slot, source, length): copy `length` positions from source to slot
    prefixes.hold(slot, keys)               # what the slot's positions are, from the first one on

A key stands for one position: a token's id, or (what was said, which tenth of a second of it). Where all keys up to a
position are equal, so are its attention's keys and values. No torch: it is the runner who copies.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

WORTH_COPYING = 16  # positions; below, reading them again costs as little


@dataclass(frozen=True)
class Place:
    slot: int
    source: int | None = None  # None: nothing to reuse
    length: int = 0


class Prefixes:
    def __init__(self, num_slots: int) -> None:
        self.held: list[list[Hashable]] = [[] for _ in range(num_slots)]

    def place(self, keys: Sequence[Hashable], free: Sequence[int]) -> Place:
        """The best of the free slots (the one free for longest comes first) for a prompt; it holds the reused part now.

        At least one position is left to read: the last one's hidden state speaks the first token.
        """
        lengths = [common(keys[:-1], held) for held in self.held]
        longest = max(lengths)
        if longest < WORTH_COPYING:
            return self._take(Place(next((slot for slot in free if not self.held[slot]), free[0])), keys)
        best = [slot for slot, length in enumerate(lengths) if length == longest]
        slot = next((slot for slot in free if slot in best), free[0])
        return self._take(Place(slot, slot if slot in best else best[0], longest), keys)

    def hold(self, slot: int, keys: Sequence[Hashable]) -> None:
        self.held[slot] = list(keys)

    def _take(self, place: Place, keys: Sequence[Hashable]) -> Place:
        self.hold(place.slot, keys[: place.length])
        return place


def common(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """How many keys are equal from the first one on."""
    length = min(len(a), len(b))
    return next((i for i in range(length) if a[i] != b[i]), length)
