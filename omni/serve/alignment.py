"""Which token of an answer sounds until which sample, and so what of it was heard. Plain data: no model, no wire.

    alignment = turn.alignment()
    heard = alignment.heard(num_samples=16_000)      # the listener's playback stood there
    heard.token_ids, heard.text, heard.rest          # what stays in the history, and what was never heard

A token's units come out of the unit decoder with it, or later: what was heard is exact to about a word.
"""

from bisect import bisect_right
from dataclasses import dataclass


@dataclass(frozen=True)
class Heard:
    """The leading part of an answer, and the text after it."""

    token_ids: tuple[int, ...]
    text: str
    rest: str
    num_samples: int


@dataclass(frozen=True)
class Alignment:
    """An answer as far as it was made, the end token left out."""

    token_ids: tuple[int, ...] = ()
    text: str = ""
    char_ends: tuple[int, ...] = ()  # of every token: characters of the text up to its end
    sample_ends: tuple[int, ...] = ()  # of the leading tokens whose sound was sent: samples up to their end
    num_samples: int = 0  # sent
    whole: bool = False  # finished, and all of its sound was sent
    spoken: bool = True  # False: only written, and what was written counts as heard

    def __post_init__(self) -> None:
        assert len(self.char_ends) == len(self.token_ids) >= len(self.sample_ends), "one end for every token"

    def heard(self, num_samples: int | None = None) -> Heard:
        """What sounded wholly within the first samples; None: all that was sent."""
        samples = self.num_samples if num_samples is None else min(num_samples, self.num_samples)
        if not self.spoken or (self.whole and samples == self.num_samples):
            return Heard(self.token_ids, self.text, "", samples)
        count = self._tokens_within(samples)
        chars = self.char_ends[count - 1] if count else 0
        return Heard(self.token_ids[:count], self.text[:chars], self.text[chars:], samples)

    def _tokens_within(self, samples: int) -> int:
        """Up to the last one that brought sound of its own: what only was thought after it was not heard."""
        count = bisect_right(self.sample_ends, samples)
        while count and self.sample_ends[count - 1] == (self.sample_ends[count - 2] if count > 1 else 0):
            count -= 1
        return count
