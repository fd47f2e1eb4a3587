"""Written and heard texts become the same words; errors are counted as edits."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.train.words import cardinal, contains, errors, f1, normalise, ordinal, words, year


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("The capital of France is Paris.", "the capital of france is paris"),
        ("42", "forty two"),
        ("1,000,001", "one million one"),
        ("It weighs 3.14 kilos", "it weighs three point one four kilos"),
        ("in 1969", "in nineteen sixty nine"),
        ("in 1905, in 1900, in 2007 and in 2024",
         "in nineteen oh five in nineteen hundred in two thousand seven and in twenty twenty four"),
        ("the 1960s", "the nineteen sixties"),
        ("July 4th, the 21st and the 30th", "july fourth the twenty first and the thirtieth"),
        ("50% of $5", "fifty percent of five dollars"),
        ("at 9:30", "at nine thirty"),
        ("007", "zero zero seven"),
        ("365 days", "three hundred sixty five days"),
        ("one hundred and five", "one hundred five"),
        ("thousand and one nights, salt and pepper", "thousand one nights salt and pepper"),
        ("I'm sure it's fine, don't you think?", "i am sure it is fine do not you think"),
        ("I can’t, you won't, let's go", "i can not you will not let us go"),
        ("O'Brien's café", "obrien is cafe"),
        ("twenty-one", "twenty one"),
        ("Dr. Smith & Mrs. Jones", "doctor smith and missus jones"),
        ("OK", "okay"),
        ("…!? — ", ""),
    ],
    ids=lambda value: value[:24],
)  # fmt: skip
def test_a_text_becomes_the_words_one_hears(written, spoken):
    assert normalise(written) == spoken


@settings(deadline=None)
@given(st.text(max_size=60))
def test_normal_text_is_left_as_it_is(text):
    """Normalising twice changes nothing, and never fails."""
    once = normalise(text)
    assert normalise(once) == once


@pytest.mark.parametrize(
    ("value", "spoken"),
    [(0, "zero"), (13, "thirteen"), (40, "forty"), (99, "ninety nine"), (100, "one hundred"),
     (214, "two hundred fourteen"),
     (1_000, "one thousand"), (12_345, "twelve thousand three hundred forty five"), (10**9, "one billion")],
)  # fmt: skip
def test_counting(value, spoken):
    assert cardinal(value) == spoken


def test_ordinals_and_years():
    assert [ordinal(n) for n in (1, 2, 3, 5, 8, 9, 12, 20, 22, 100)] == [
        "first", "second", "third", "fifth", "eighth", "ninth", "twelfth", "twentieth", "twenty second",
        "one hundredth",
    ]  # fmt: skip
    assert [year(n) for n in (1066, 1800, 1989, 2010)] == [
        "ten sixty six", "eighteen hundred", "nineteen eighty nine", "twenty ten",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("heard", "meant", "count"),
    [("", "a b c", 3), ("a b c", "", 3), ("a b c", "a b c", 0), ("a x c", "a b c", 1), ("a c", "a b c", 1),
     ("a a b c", "a b c", 1), ("c b a", "a b c", 2)],
)  # fmt: skip
def test_errors_are_the_fewest_edits(heard, meant, count):
    assert errors(heard.split(), meant.split()) == count


@settings(deadline=None)
@given(st.lists(st.sampled_from("ab"), max_size=6), st.lists(st.sampled_from("ab"), max_size=6))
def test_errors_are_a_distance(first, second):
    assert errors(first, second) == errors(second, first)
    assert (errors(first, second) == 0) == (first == second)
    assert abs(len(first) - len(second)) <= errors(first, second) <= max(len(first), len(second))


def test_f1_counts_shared_words_once_each():
    assert f1(words("the cat sat"), words("the cat sat")) == 1.0
    assert f1(words("the the the"), words("the")) == 0.5
    assert f1(words("yes"), words("no")) == 0.0
    assert f1([], []) == 1.0
    assert f1([], ["a"]) == 0.0


def test_a_phrase_stands_in_a_text_whole_and_in_order():
    assert contains(words("It is New York City."), words("New York"))
    assert not contains(words("New things in York"), words("New York"))
    assert not contains(words("Parisian"), words("Paris"))
    assert not contains(words("anything"), [])
