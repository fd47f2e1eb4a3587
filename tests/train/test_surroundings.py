"""Sentences for the ear alone: every word follows a word it follows somewhere, and nothing held out occurs."""

from itertools import islice, pairwise

import pytest

from omni.train import surroundings
from omni.train.instructions import examples
from omni.train.words import normalise

COMMON = ["apple", "river"]


@pytest.fixture(scope="module")
def sentences():
    return list(islice(surroundings.make(0, COMMON), 2000))


def test_the_same_seed_gives_the_same_sentences(sentences):
    assert list(islice(surroundings.make(0, COMMON), 50)) == sentences[:50]
    assert list(islice(surroundings.make(1, COMMON), 50)) != sentences[:50]


def test_no_question_is_made_and_none_twice(sentences):
    train, heldout = examples(0)
    made = [normalise(text) for text in sentences]
    assert len(set(made)) == len(made)
    assert not set(made) & {normalise(each.instruction) for each in (*train, *heldout)}


def test_sentences_are_short_and_hold_common_words(sentences):
    assert all(3 <= len(text.split()) <= surroundings.LONGEST for text in sentences)
    words = [word for text in sentences for word in normalise(text).split()]
    assert 0.05 < sum(word in COMMON for word in words) / len(words) < surroundings.SWAPPED + 0.05


def test_a_word_follows_what_it_follows_in_a_text():
    import random

    texts = ["a b c", "b d", "a c"]
    follows = {pair for text in texts for pair in pairwise([None, *text.split(), None])}
    chain, draw = surroundings.Chain(texts), random.Random(0)
    made = [chain.sentence(draw) for _ in range(50)]
    assert all(set(pairwise([None, *words, None])) <= follows for words in made)
    assert ["a", "b", "d"] in made  # which no text says


def test_every_word_that_training_asks_is_said_about_as_often_as_any_other():
    words = surroundings.every_word(COMMON)
    assert set(COMMON) < set(words)
    sentences = list(islice(surroundings.make(0, words, surroundings.SWAPPED_RARE, shortest=1), 1000))
    said = [word.strip(",.?!").lower() for text in sentences for word in text.split()]
    usual = [word.strip(",.?!").lower() for text in islice(surroundings.make(0, COMMON), 1000) for word in text.split()]
    assert len(set(said)) > 2 * len(set(usual))
    assert min(len(text.split()) for text in sentences) == 1
