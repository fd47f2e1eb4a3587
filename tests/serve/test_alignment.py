"""What of an answer was heard, from the samples that were played."""

import pytest

from omni.serve.alignment import Alignment

# four tokens, the third without a unit of its own; the last one's sound is not sent yet
ANSWER = Alignment((11, 12, 13, 14), "One two, four", (3, 7, 8, 13), (100, 300, 300), 320)


@pytest.mark.parametrize(
    ("samples", "tokens", "text"),
    [
        (0, (), ""),
        (99, (), ""),
        (100, (11,), "One"),
        (299, (11,), "One"),
        (300, (11, 12), "One two"),
        (None, (11, 12), "One two"),
        (10_000, (11, 12), "One two"),
    ],
)
def test_a_token_was_heard_when_its_sound_was_played_to_its_end(samples, tokens, text):
    """And a silent one only with a sound after it: it had been thought, not heard."""
    heard = ANSWER.heard(samples)
    assert (heard.token_ids, heard.text) == (tokens, text)
    assert heard.text + heard.rest == ANSWER.text


def test_a_silent_token_is_heard_with_the_sound_after_it():
    answer = Alignment((1, 2, 3), "a, b", (1, 2, 4), (0, 0, 50), 50)
    assert answer.heard(49).token_ids == ()
    assert answer.heard(50).token_ids == (1, 2, 3)


def test_a_whole_answer_is_heard_with_its_last_sample():
    """Silent tokens at its end too; one sample less, and they are not."""
    answer = Alignment((1, 2, 3), "Yes.", (3, 4, 4), (80, 80, 80), 100, whole=True)
    assert answer.heard(100).text == "Yes." and answer.heard().token_ids == (1, 2, 3)
    assert answer.heard(99).text == "Yes"


def test_what_was_written_counts_as_heard():
    assert Alignment((1,), "Yes", (3,), spoken=False).heard(0).text == "Yes"


def test_nothing_was_heard_of_an_answer_that_has_not_begun():
    assert Alignment().heard().token_ids == ()
