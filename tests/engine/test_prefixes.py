"""A prompt's beginning is read once. No torch in the first half; the second asks the engine."""

from omni.engine.engine import Engine, EngineConfig
from omni.engine.prefixes import Place, Prefixes, common
from omni.model.prompt import Utterance
from omni.model.sampling import Sampling
from tests.engine.conftest import reference, run

SYSTEM = list(range(100, 120))  # long enough to be worth it


def test_common_is_the_length_of_the_equal_beginning():
    """Also where one ends inside the other, and where nothing is equal."""
    assert [common(a, b) for a, b in (("abc", "abd"), ("ab", "abc"), ("", "a"), ("x", "y"))] == [2, 2, 0, 0]


def test_a_free_slot_that_remembers_is_taken_as_it_is():
    """The session's own slot, though another has been free for longer."""
    prefixes = Prefixes(3)
    prefixes.hold(0, [1, 2])
    prefixes.hold(2, [*SYSTEM, 5, 6])
    assert prefixes.place([*SYSTEM, 5, 7], free=[0, 1, 2]) == Place(2, 2, 21)
    assert prefixes.held[2] == [*SYSTEM, 5]


def test_a_running_slot_is_copied_from():
    """The system prompt of somebody who is still running."""
    prefixes = Prefixes(2)
    prefixes.hold(0, [*SYSTEM, 5, 6])
    assert prefixes.place([*SYSTEM, 7], free=[1]) == Place(1, 0, 20)


def test_the_last_position_is_always_read():
    """Its hidden state speaks the first token: the very same prompt leaves one position to read."""
    prefixes = Prefixes(1)
    prefixes.hold(0, SYSTEM)
    assert prefixes.place(SYSTEM, free=[0]).length == len(SYSTEM) - 1


def test_without_a_match_an_empty_slot_is_taken_before_one_that_remembers():
    """Else the one that has been free for longest forgets."""
    prefixes = Prefixes(3)
    prefixes.hold(0, SYSTEM)
    assert prefixes.place([1, 2, 3], free=[0, 2]) == Place(2)
    assert prefixes.place([1, 2, 3], free=[0]) == Place(0)
    assert prefixes.held[0] == []


def test_a_sessions_next_turn_reads_only_what_is_new(omni, questions):
    """The answer is the reference's; the first question is not encoded or read again, until it is asked again."""
    sampling = Sampling(max_new_tokens=8)
    engine = Engine(omni, EngineConfig(num_slots=2))
    engine.add("first", questions[0], sampling)
    first = run(engine)["first"]
    engine.add("other", questions[1], sampling)
    run(engine)
    answer = Utterance("assistant", text=first.text)
    second = [*questions[0], answer, *questions[2], answer, *questions[0]]  # the first question, asked again
    sequence = engine.add("second", second, sampling)
    assert run(engine)["second"] == reference(omni, second, sampling)
    assert sequence.num_reused > len(questions[0][0].speech) // 1600
    assert engine.runner.hearing.rows == 2  # both questions, once


def test_a_shared_system_prompt_is_copied_from_a_running_turn(omni):
    """Five turns with one system prompt, three slots: each equals the reference, and only the first reads it all."""
    system = Utterance("system", text="You are kind, brief, and never in a hurry.")
    sampling = Sampling(max_new_tokens=6)
    engine = Engine(omni, EngineConfig(num_slots=3))
    questions = [[system, Utterance("user", text=f"Question {i}?")] for i in range(5)]
    sequences = [engine.add("0", questions[0], sampling)]
    engine.step()
    sequences += [engine.add(f"{i}", questions[i], sampling) for i in range(1, 5)]
    answers = run(engine)
    assert [answers[f"{i}"].units for i in range(1, 5)] == [reference(omni, q, sampling).units for q in questions[1:]]
    assert sequences[0].num_reused == 0
    assert min(each.num_reused for each in sequences[1:]) > len(system.text)


def test_a_slot_that_went_wrong_is_not_remembered(omni, questions):
    """What gave NaN once is read anew."""
    engine = Engine(omni, EngineConfig(num_slots=1))
    bad = engine.add("bad", questions[0], Sampling(max_new_tokens=8))
    engine.step()
    engine.runner.slots.v[:, bad.slot] = float("nan")
    assert run(engine)["bad"].error.code == "not_finite"
    again = engine.add("again", questions[0], Sampling(max_new_tokens=8))
    assert run(engine)["again"] == reference(omni, questions[0], Sampling(max_new_tokens=8))
    assert again.num_reused == 0


def test_an_answers_own_tokens_are_not_read_again(omni, questions):
    """The second turn reads what is new: the answer's last token, which no step has fed, the template, the question."""
    engine = Engine(omni, EngineConfig(num_slots=2))
    engine.add("first", questions[0], Sampling(max_new_tokens=8))
    answer = Utterance("assistant", token_ids=tuple(run(engine)["first"].tokens))
    conversation = [*questions[0], answer, Utterance("user", text="And then?")]
    sequence = engine.add("second", conversation, Sampling(max_new_tokens=1))
    before = engine.runner.text.rows
    assert run(engine)["second"] == reference(omni, conversation, Sampling(max_new_tokens=1))
    template = omni.tokenizer("<|im_end|>\n<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n").input_ids
    assert engine.runner.text.rows - before == 1 + len(template)
    assert sequence.num_reused == sequence.prompt_length - 1 - len(template)


def test_of_an_interrupted_answer_the_heard_tokens_are_not_read_again(omni, questions):
    """Aborted after some tokens, of which three were heard: what comes after them is overwritten."""
    first, question = questions[0], Utterance("user", text="Stop.")
    engine = Engine(omni, EngineConfig(num_slots=2))
    engine.add("first", first, Sampling(max_new_tokens=40))
    given = []
    while len(given) < 10:
        given += [token for output in engine.step() for token in output.token_ids]
    engine.abort("first")
    conversation = [*first, Utterance("assistant", token_ids=tuple(given[:3])), question]
    sequence = engine.add("second", conversation, Sampling(max_new_tokens=4))
    before = engine.runner.text.rows
    engine.step()
    template = omni.tokenizer("<|im_end|>\n<|im_start|>user\nStop.<|im_end|>\n<|im_start|>assistant\n").input_ids
    assert engine.runner.text.rows - before == len(template)
    assert run(engine)["second"].tokens == reference(omni, conversation, Sampling(max_new_tokens=4)).tokens[1:]
    assert sequence.error is None


def test_tokens_of_another_model_are_refused(omni):
    engine = Engine(omni, EngineConfig(num_slots=1))
    strange = Utterance("assistant", token_ids=(omni.config.vocab_size,))
    engine.add("t", [Utterance("user", text="Hi."), strange, Utterance("user", text="Hi.")])
    assert run(engine)["t"].error.code == "bad_prompt"
