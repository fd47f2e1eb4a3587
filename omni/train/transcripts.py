"""What the ear is asked to write down of a text: its words as the LLM knows them best, and no marks.

    transcript = Transcript(tokenize)                          # text → ids, as a tokenizer does it
    transcript("Brazil is part of which continent?")           # the ids of " Brazil is part of which continent"
    transcript("Do you like madrid?")                          # … of " do you like Madrid"

The LLM has one token for a word in the middle of a sentence, and another or several for the same word at its beginning
or with another capital: "Brazil" is "B" and "razil" there. No ear can tell those apart, and marks have no sound of
their own. So every word is written in one way: as in the middle of a sentence, and of small letters, a capital or
capitals alone whatever takes the fewest tokens; among equals, the one that the tokenizer learnt first.
"""

from collections.abc import Callable

MARKS = ',.?!:;"“”…'
KEPT = 100_000  # words whose tokens are remembered


class Transcript:
    def __init__(self, tokenize: Callable[[str], list[int]]) -> None:
        self.tokenize = tokenize
        self.known: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        """Text → token ids."""
        words = (word.strip(MARKS) for word in text.split())
        return [token for word in words if word for token in self._word(word)]

    def _word(self, word: str) -> list[int]:
        small = word.lower()
        if small not in self.known:
            if len(self.known) >= KEPT:
                self.known.clear()
            written = (small, small.capitalize(), small.upper())
            self.known[small] = min((self.tokenize(f" {form}") for form in written), key=lambda ids: (len(ids), ids))
        return self.known[small]
