"""Stage 1's batches: every utterance once a round, kinds and groups evenly, and the step decides what is drawn."""

from itertools import chain, pairwise

import numpy as np
import pytest
import torch

from omni.train import speech
from omni.train.corpus import TURNS, Corpus, CorpusError, Dialogue
from omni.train.instructions import Example, follow_ups


def write(folder, name: str, first: int, count: int = 8) -> None:
    some = [
        speech.Spoken(Example(f"{i}", "Yes.", "factual", f"{i}"), f"{i}", "v", torch.zeros(10 + 10 * (i % 3), 8))
        for i in range(first, first + count)
    ]
    speech.write_shard(folder / f"{name}.safetensors", some)


def said(corpus: Corpus, steps) -> list[list[int]]:
    return [sorted(int(each.text) for each in corpus.spoken_at(step)) for step in steps]


def instructions(dialogues: list[Dialogue]) -> list[list[str]]:
    return [[example.instruction for example, _ in dialogue] for dialogue in dialogues]


def everything(batches: list[list[int]]) -> list[int]:
    return sorted(chain.from_iterable(batches))


def test_a_round_takes_every_utterance_once_and_new_shards_join_the_next(tmp_path):
    """Eight utterances are four batches of two; a shard that appears meanwhile waits for the second round."""
    write(tmp_path, "b", 0)
    corpus = Corpus(tmp_path, seed=0, heard=2)
    first = said(corpus, [0])
    write(tmp_path, "a", 8)  # its name sorts before: utterances that are known keep their numbers
    first += said(corpus, range(1, 4))
    assert everything(first) == list(range(8))
    second = said(corpus, range(4, 12))
    assert everything(second) == list(range(16))
    third = said(corpus, range(12, 20))
    assert everything(third) == list(range(16)) and third != second


def test_a_corpus_that_goes_on_draws_what_it_would_have_drawn(tmp_path):
    """From its state, at any step, though shards appeared while it was away: they join with the next round."""
    write(tmp_path, "b", 0)
    corpus = Corpus(tmp_path, seed=3, heard=3)
    said(corpus, [0])
    write(tmp_path, "a", 8, count=5)
    said(corpus, range(1, 5))  # 0 … 2 are the first round, 3 … 7 the second, of thirteen
    state = corpus.state()
    whole = [(said(corpus, [step]), corpus.dialogues_at(step, 4, 0.5)) for step in range(5, 8)]
    write(tmp_path, "c", 20)
    again = Corpus(tmp_path, seed=3, heard=3, state=state)
    for step, (spoken, asked) in enumerate(whole, start=5):
        assert said(again, [step]) == spoken
        assert instructions(again.dialogues_at(step, 4, 0.5)) == instructions(asked)
    assert len(again.spoken) == 13
    assert everything(said(again, range(8, 15))) == [*range(13), *range(20, 28)]


def test_seed_and_step_decide_a_batch(tmp_path):
    write(tmp_path, "a", 0, count=40)
    corpora = [Corpus(tmp_path, seed, heard=4) for seed in (0, 0, 1)]
    said(corpora[0], range(7))
    batches = [said(corpus, [7, 8]) for corpus in corpora]
    assert batches[0] == batches[1] != batches[2]
    assert batches[0][0] != batches[0][1]
    asked = [instructions(corpora[0].dialogues_at(step, 12, 0.5)) for step in (7, 7, 8)]
    assert asked[0] == asked[1] != asked[2]


def test_batches_hold_utterances_of_like_length(tmp_path):
    draw = np.random.default_rng(0)
    some = [
        speech.Spoken(Example(f"{i}", "", "heard", "heard"), f"{i}", "v", torch.zeros(int(n), 8))
        for i, n in enumerate(draw.integers(5, 200, 160))
    ]
    speech.write_shard(tmp_path / "a.safetensors", some)
    corpus = Corpus(tmp_path, seed=0, heard=10)
    spreads = [np.ptp([len(each.mel) for each in corpus.spoken_at(step)]) for step in range(16)]
    assert np.mean(spreads) < 20  # at random it would be about 160


def test_shards_that_are_gone_and_speech_that_never_was_are_named(tmp_path):
    with pytest.raises(CorpusError, match="holds no speech"):
        Corpus(tmp_path, 0, heard=2).spoken_at(0)
    write(tmp_path, "a", 0)
    state = Corpus(tmp_path, 0, heard=2).state()
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(CorpusError, match=r"a.safetensors is gone"):
        Corpus(tmp_path, 0, heard=2, state=state)


def test_batches_draw_kinds_evenly_by_group(tmp_path):
    """An intent of a hundred phrasings is not drawn a hundred times as often as one of a single phrasing."""
    many = [
        speech.Spoken(Example(f"Hi {i}", "Hello!", "chitchat", "many"), "Hi", "v", torch.zeros(5, 8))
        for i in range(100)
    ]
    one = [speech.Spoken(Example("Bye", "Goodbye.", "chitchat", "one"), "Bye", "v", torch.zeros(5, 8))]
    rest = [
        speech.Spoken(Example("What?", "That.", kind, kind), "What?", "v", torch.zeros(5, 8))
        for kind in ("factual", "everyday")
    ]
    speech.write_shard(tmp_path / "a.safetensors", many + one + rest)
    corpus = Corpus(tmp_path, seed=0, heard=32)
    dialogues = [dialogue for step in range(20) for dialogue in corpus.dialogues_at(step, 20, spoken_share=1.0)]
    drawn = [example for dialogue in dialogues for example, _ in dialogue]
    share = sum(each.group == "one" for each in drawn) / sum(each.group in ("one", "many") for each in drawn)
    assert 0.04 < share < 0.2  # by number 0.01, by group 0.5, by the root of the number 0.09


def test_dialogues_hold_the_questions_wanted_and_follow_ups_come_after_what_they_mean(tmp_path):
    """Of the same relation, and of another pair: "And Spain?" after what the capital of France is."""
    write(tmp_path, "a", 0)
    spoken = [speech.Spoken(each, each.instruction, "v", torch.zeros(10, 8)) for each in follow_ups()[0][::3]]
    speech.write_shard(tmp_path / "b.safetensors", spoken)
    corpus = Corpus(tmp_path, seed=0, heard=4)
    turns, asked_aloud = [], 0
    for step in range(100):
        dialogues = corpus.dialogues_at(step, 12, spoken_share=0.5)
        assert 12 <= sum(map(len, dialogues)) < 12 + max(TURNS)
        turns += map(len, dialogues)
        for dialogue in dialogues:
            assert dialogue[0][0].kind != "follow-up"
            for (before, _), (after, said) in pairwise(dialogue):
                if after.kind == "follow-up":
                    assert after.group != before.group
                    assert after.group.partition("/")[0] == before.group.partition("/")[0]
                    asked_aloud += said is not None
    assert asked_aloud > 0
    for number, share in TURNS.items():
        assert turns.count(number) / len(turns) == pytest.approx(share, abs=0.1)
