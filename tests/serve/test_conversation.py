"""A session's items: what goes into the next prompt, what was heard, and what leaves."""

import pytest

from omni.serve.alignment import Alignment
from omni.serve.conversation import Conversation, Item
from omni.serve.errors import BadRequest
from omni.serve.protocol import Message
from omni.serve.window import BASE_POSITIONS, TEMPLATE_POSITIONS, Window

SECOND = b"\1\0" * 16_000
# three tokens of half a second each
ANSWER = Alignment((1, 2, 3), "One two three", (3, 7, 13), (8_000, 16_000, 24_000), 24_000, whole=True)


def roomy(**limits: float) -> Window:
    return Window(**{"positions": 10_000, "seconds": 300, "turns": 100} | limits)  # type: ignore[arg-type]


def spoken(number: int = 1, **limits: float) -> Conversation:
    """`number` questions of a second, all but the last one answered."""
    conversation = Conversation(roomy(**limits))
    for i in range(number):
        conversation.add(Item.speech(SECOND, f"question {i}"))
        if i + 1 < number:
            conversation.begin_answer(f"answer {i}")
            conversation.end_answer(f"answer {i}", ANSWER)
    return conversation


def ids(items) -> list[str]:
    return [item.id for item in items]


def test_an_answer_goes_into_the_next_prompt_with_its_own_tokens():
    question = Message("user", pcm16=SECOND)
    answer = Message("assistant", text="One two three", token_ids=(1, 2, 3))
    assert spoken(2).messages() == (question, answer, question)


def test_an_interrupted_answer_keeps_what_was_heard():
    conversation = spoken(2)
    conversation.truncate("answer 0", 1_200)
    assert conversation.messages()[1] == Message("assistant", text="One two", token_ids=(1, 2))
    assert conversation.find("answer 0").heard.rest == " three"


def test_the_client_may_correct_what_it_played():
    """Our guess at the interruption was too low: the last word counts."""
    conversation = spoken()
    conversation.begin_answer("a")
    conversation.end_answer("a", ANSWER, heard=8_000, completed=False)
    assert conversation.find("a").heard.text == "One"
    assert conversation.truncate("a", 1_000).heard.text == "One two"
    assert conversation.find("a").status == "incomplete"


def test_truncating_an_answer_in_progress_holds_when_it_ends():
    conversation = spoken()
    conversation.begin_answer("a")
    conversation.truncate("a", 500)
    conversation.end_answer("a", ANSWER, completed=False)
    assert conversation.find("a").heard.text == "One"


@pytest.mark.parametrize("heard", [0, 7_999])
def test_an_answer_of_which_nothing_was_heard_is_no_part_of_the_prompt(heard):
    conversation = spoken()
    conversation.begin_answer("a")
    assert len(conversation.messages()) == 1, "nor is one in progress"
    conversation.end_answer("a", ANSWER, heard=heard, completed=False)
    assert len(conversation.messages()) == 1


@pytest.mark.parametrize("milliseconds", [-1, 1_501, 10**12])
def test_more_than_was_sent_cannot_have_been_played(milliseconds):
    conversation = spoken(2)
    with pytest.raises(BadRequest) as told:
        conversation.truncate("answer 0", milliseconds)
    assert told.value.param == "audio_end_ms" and "1500 ms" in told.value.message
    assert conversation.find("answer 0").heard_samples is None


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (lambda talk: talk.find("nobody"), "item_not_found"),
        (lambda talk: talk.delete("nobody"), "item_not_found"),
        (lambda talk: talk.truncate("nobody", 0), "item_not_found"),
        (lambda talk: talk.truncate("question 0", 0), "invalid_value"),
        (lambda talk: talk.add(Item.speech(SECOND, "question 0")), "item_exists"),
        (lambda talk: talk.add(Item.speech(SECOND), after="nobody"), "item_not_found"),
        (lambda talk: talk.add(Item.written("tool", "x")), "invalid_value"),
    ],
    ids=["find", "delete", "truncate", "a question", "twice", "after nobody", "role"],
)
def test_what_is_wrong_is_told_and_changes_nothing(act, code):
    conversation = spoken()
    with pytest.raises(BadRequest) as told:
        act(conversation)
    assert told.value.code == code
    assert ids(conversation) == ["question 0"]


def test_the_number_of_items_is_limited():
    conversation = Conversation(roomy(), max_items=1)
    conversation.add(Item.speech(SECOND))
    with pytest.raises(BadRequest, match="1 items, the limit"):
        conversation.add(Item.speech(SECOND))


def test_what_it_holds_is_limited():
    """Of text, and of speech: twice of what goes into a prompt."""
    conversation = Conversation(roomy(seconds=1), max_chars=10)
    conversation.add(Item.written("user", "Hello"))
    with pytest.raises(BadRequest, match="11 characters; the limit is 10"):
        conversation.add(Item.written("user", "Hello."))
    conversation.add(Item.speech(SECOND))
    conversation.add(Item.speech(SECOND))
    with pytest.raises(BadRequest, match=r"3\.0 s of speech; the limit is 2 s"):
        conversation.add(Item.speech(SECOND))
    assert conversation.begin_answer(), "an answer is always taken in"
    assert len(conversation.items) == 4


def test_items_have_an_order():
    """After another one, at the beginning, or at the end."""
    conversation = spoken()
    conversation.add(Item.written("system", "Be brief.", "s"), after="root")
    conversation.add(Item.written("user", "And?", "u"), after="s")
    conversation.add(Item.written("user", "Last.", "l"))
    assert ids(conversation) == ["s", "u", "question 0", "l"]
    assert [conversation.previous(each) for each in ("s", "u", "l")] == [None, "s", "question 0"]
    conversation.delete("u")
    assert ids(conversation) == ["s", "question 0", "l"]


def test_within_the_limits_nothing_leaves():
    conversation = spoken(5)
    assert conversation.make_room() == [] and len(conversation.items) == 9


def test_the_oldest_turns_leave_whole_and_are_told():
    """Instructions stay, wherever they stand."""
    conversation = spoken(5, turns=4, keep=0.5)
    conversation.add(Item.written("system", "Be brief.", "s"), after="question 0")
    assert ids(conversation.make_room()) == [f"{kind} {i}" for i in range(3) for kind in ("question", "answer")]
    assert ids(conversation) == ["s", "question 3", "answer 3", "question 4"]
    assert conversation.make_room() == []


def test_positions_are_limited():
    """Three turns and a question are more than three turns; then four fifths hold one, and the question."""
    turn = 10 + 3 + 2 * TEMPLATE_POSITIONS
    conversation = spoken(4, positions=3 * turn + BASE_POSITIONS, keep=0.8)
    assert ids(conversation.make_room()) == ["question 0", "answer 0", "question 1", "answer 1"]


def test_a_question_that_is_still_being_said_takes_room_and_does_not_stay():
    conversation = spoken(2, seconds=2.5, keep=1.0)
    conversation.delete("question 1")
    pending = [Item.speech(SECOND + SECOND, "p")]
    assert ids(conversation.make_room(pending)) == ["question 0", "answer 0"]
    assert conversation.messages(pending) == (Message("user", pcm16=SECOND + SECOND),)
    assert ids(conversation) == []


def test_what_can_never_fit_is_refused():
    """Nothing leaves for it."""
    conversation = spoken(3, seconds=5)
    conversation.add(Item.speech(SECOND * 6))
    with pytest.raises(BadRequest) as told:
        conversation.make_room()
    assert told.value.code == "context_too_long" and len(conversation.items) == 6
