"""The held-out dialogues: what ships is what the seed makes, and a follow-up means nothing without what it follows."""

import pytest

from omni.audio import wav
from omni.train import heldout, scoring
from omni.train.evaluate import DIALOGUES
from omni.train.instructions import examples, follow_ups


@pytest.fixture(scope="module")
def made():
    return heldout.converse(examples(0)[0], follow_ups()[1], 60, seed=0)


def test_a_follow_up_comes_after_a_question_of_its_relation_whose_answer_does_not_fit(made):
    for _, first, second in made:
        assert first.group.partition("/")[0] == second.group.partition("/")[0]
        assert not scoring.contains(scoring.words(first.response), scoring.words(second.fact))


def test_the_splits_share_no_follow_up_and_no_dialogue_comes_twice(made):
    split = {
        name: {(each.group, first.group) for at, first, each in made if at == name} for name in ("development", "test")
    }
    assert [len(pairs) for pairs in split.values()] == [30, 30]
    assert not {group for group, _ in split["development"]} & {group for group, _ in split["test"]}


def test_what_ships_is_what_the_seed_makes(made):
    shipped = scoring.read_manifest(DIALOGUES)
    assert [(each.split, each.history[0].instruction, each.instruction, each.fact) for each in shipped] == [
        (split, first.instruction, second.instruction, second.fact) for split, first, second in made
    ]
    for each in shipped:
        for sound in (each.audio, each.history[0].audio):
            assert 0.5 < len(wav.read(sound)) / wav.SAMPLE_RATE < 8
