"""Training questions: what is held out, what an answer may be, and that a seed always gives the same."""

import re

import pytest

from omni.train import instructions
from omni.train.heldout import choose


@pytest.fixture(scope="module")
def both():
    return instructions.examples(0)


def plain(text):
    return re.sub(r"[^a-z ]", "", text.lower()).strip()


def test_the_same_seed_gives_the_same_examples(both):
    assert instructions.examples(0) == both


def test_no_held_out_question_is_trained_on(both):
    """A held-out phrasing occurs nowhere in training, not even with other punctuation."""
    train, heldout = both
    assert not {plain(each.instruction) for each in train} & {plain(each.instruction) for each in heldout}


def test_held_out_questions_ask_for_what_is_trained(both):
    """Phrasings are held out, not facts: every held-out answer is also a trained one."""
    train, heldout = both
    assert {each.response for each in heldout} <= {each.response for each in train}


def test_answers_are_speakable(both):
    """No digits, symbols or markup, and short enough to say in about ten seconds."""
    for example in (*both[0], *both[1]):
        assert re.fullmatch(r"[A-Za-z ,.!?'\-]*", example.response), example
        assert len(example.response.split()) <= 30, example


def test_a_fact_is_named_in_its_answer(both):
    for example in both[1]:
        if example.fact:
            assert plain(example.fact) in plain(example.response), example


def test_words_between_bars_are_said_in_the_question_only(both):
    asked = {each.instruction: each.response for each in both[0]}
    assert asked["How many minutes are in an hour?"] == "There are sixty minutes in an hour."


@pytest.mark.parametrize(("value", "said"), [(0, "zero"), (13, "thirteen"), (40, "forty"), (72, "seventy two")])
def test_numbers_are_words(value, said):
    assert instructions.number(value) == said


def test_a_broken_pair_is_named_with_its_line(tmp_path):
    path = tmp_path / "facts.txt"
    path.write_text("# about the file\n# capital\n? What is the capital of {0}?\nFrance: Paris; Germany Berlin\n")
    with pytest.raises(ValueError, match=r"facts\.txt:4: 'Germany Berlin'"):
        instructions.read_relations(path, "factual")


def test_chosen_questions_are_spread_over_intents(both):
    """Sixty chit-chat questions come from sixty intents."""
    chosen = choose(both[1], "chitchat", 60, seed=0)
    assert len({each.group for each in chosen}) == 60


def test_a_follow_up_asks_another_pair_of_a_relation_and_none_held_out_is_trained_on(both):
    train, heldout = instructions.follow_ups()
    whole = {each.group: each for each in both[0] if each.kind == "factual"}
    for each in (*train, *heldout):
        assert whole[each.group].response == each.response
        assert whole[each.group].fact == each.fact
    assert next(each.instruction for each in train if each.group == "capital/Spain") == "And Spain?"
    assert not {each.group for each in train} & {each.group for each in heldout}
    assert not {plain(each.instruction) for each in train} & {plain(each.instruction) for each in heldout}
    assert 30 < len(heldout) < len(train) / 10
