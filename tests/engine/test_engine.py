"""The engine is fast, the reference path is obvious; they agree, whatever else is in the batch."""

import copy
from difflib import SequenceMatcher

import pytest
import torch

from omni.engine.engine import Engine, EngineConfig
from omni.engine.scheduler import SchedulerConfig
from omni.engine.sequence import BadSetting
from omni.model.prompt import Utterance
from omni.model.sampling import Sampling
from tests.engine.conftest import reference, run

SHORT = Sampling(max_new_tokens=12)


@pytest.mark.parametrize("one_behind", [False, True], ids=["reads at once", "reads one step behind"])
def test_equals_the_reference_on_the_goldens(golden, questions, one_behind: bool):
    """Tokens, text and units of the published shapes, batched in fewer slots than there are questions."""
    sampling = Sampling(max_new_tokens=8)
    engine = Engine(golden, EngineConfig(num_slots=2, one_behind=one_behind))
    for i, question in enumerate(questions[:3]):
        engine.add(f"{i}", question, sampling)
    answers = run(engine)
    assert answers == {f"{i}": reference(golden, question, sampling) for i, question in enumerate(questions[:3])}
    assert sorted(engine.scheduler.free) == [0, 1]


def test_batched_equals_alone(omni, questions):
    """Greedy and sampled rows of several lengths in one batch: each is what it is alone."""
    engine = Engine(omni, EngineConfig(num_slots=4))
    wanted = {}
    for i, question in enumerate(questions):
        sampling = Sampling(max_new_tokens=6 + 5 * i, temperature=0.8 * (i % 2), seed=i)
        engine.add(f"{i}", question, sampling)
        wanted[f"{i}"] = reference(omni, question, sampling)
    assert run(engine) == wanted


@pytest.mark.parametrize("budget", [1, 7, 64, 4096])
@pytest.mark.parametrize("which", ["golden", "omni"])
def test_prompts_read_together_equal_alone(request, questions, which: str, budget: int):
    """Prompts of five lengths in a call, cut anywhere, one with forced tokens: tokens and units are equal."""
    omni = request.getfixturevalue(which)
    sampling = Sampling(max_new_tokens=8)
    wanted = [reference(omni, question, sampling) for question in questions]
    scheduling = SchedulerConfig(6, 6, budget, budget, budget, encode_alone=10_000)
    engine = Engine(omni, EngineConfig(num_slots=6), scheduling)
    for i, question in enumerate(questions):
        engine.add(f"{i}", question, sampling)
    heard = tuple(wanted[0].tokens[:5])
    engine.add("again", questions[0], sampling, forced=heard)
    answers = run(engine)
    assert answers["again"].tokens == wanted[0].tokens[5:]
    assert wanted[0].units[len(wanted[0].units) - len(answers["again"].units) :] == answers["again"].units
    assert [answers[f"{i}"] for i in range(len(questions))] == wanted


def test_recovered_equals_undisturbed(omni, questions):
    """A turn goes on elsewhere with the tokens already heard forced: nothing is doubled, nothing missing."""
    sampling = Sampling(max_new_tokens=40, temperature=0.7, seed=5)
    whole = reference(omni, questions[0], sampling)
    for num_heard in (1, 2, 17, 39):
        heard = tuple(whole.tokens[:num_heard])
        received = len(reference(omni, questions[0], Sampling(max_new_tokens=num_heard), heard).units)
        for num_units in {max(received - 7, 0), received}:
            engine = Engine(omni, EngineConfig(num_slots=2))
            engine.add("other", questions[1], SHORT)
            engine.add("again", questions[0], sampling, heard, num_units)
            again = run(engine)["again"]
            assert again.tokens == whole.tokens[num_heard:]
            assert again.units == whole.units[num_units:]
            assert whole.text.endswith(again.text)


def test_a_stop_token_ends_the_answer(omni, questions):
    """The stop token is given out, with its units, and is the last one."""
    stop = omni.config.eos_token_ids[0]
    engine = Engine(omni)
    engine.add("forced", questions[1], SHORT, forced=(65, 66, stop, 67))
    answer = run(engine)["forced"]
    assert answer.finish == "stop"
    assert answer.units == reference(omni, questions[1], SHORT, (65, 66, stop)).units


def test_an_unknown_role_is_that_turns_error_alone(omni, questions):
    """What is wrong with a conversation comes as its only output."""
    engine = Engine(omni)
    engine.add("good", questions[0], SHORT)
    engine.add("bad", [Utterance("robot", text="beep")], SHORT)
    answers = run(engine)
    assert answers["bad"].error.code == "bad_prompt"
    assert answers["good"] == reference(omni, questions[0], SHORT)


@pytest.mark.filterwarnings("ignore:.*deprecated:UserWarning")
@pytest.mark.parametrize(("dtype", "weights"), [(torch.bfloat16, "float"), (torch.float32, "int8")], ids=str)
def test_rougher_weights_answer_nearly_the_same(omni, questions, dtype, weights: str):
    """Three turns at once, the exact answer's tokens forced: most units are the exact ones, in the same order."""
    engine = Engine(copy.deepcopy(omni).to(dtype), EngineConfig(num_slots=3, weights=weights))
    exact = [reference(omni, question, SHORT) for question in questions[:3]]
    for i, question in enumerate(questions[:3]):
        engine.add(f"{i}", question, Sampling(max_new_tokens=13), forced=exact[i].tokens)
    answers = run(engine)
    for i, question in enumerate(questions[:3]):
        answer = answers[f"{i}"]
        assert answer.finish == "length" and len(answer.tokens) == 1
        wanted = reference(omni, question, Sampling(max_new_tokens=13), [*exact[i].tokens, *answer.tokens]).units
        assert SequenceMatcher(None, answer.units, wanted, autojunk=False).ratio() > 0.6


def test_a_listeners_buffer_is_counted_in_the_vocoders_units(omni):
    """20 units of 59 ms are 1.18 s of sound; of published ones, where nothing is told, 0.6 s."""
    for config, seconds in ((EngineConfig(1, seconds_per_unit=0.059), 1.18), (EngineConfig(1), 0.6)):
        engine = Engine(omni, config)
        sequence = engine.add("turn", [Utterance("user", text="Hello.")], Sampling(max_new_tokens=9))
        engine.scheduler.emitted(sequence, 20, now=5.0)
        assert engine.scheduler.buffer(sequence, 5.0) == pytest.approx(seconds)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(BadSetting, match="seconds_per_unit is"):
            EngineConfig(1, seconds_per_unit=wrong)


def test_a_step_reads_more_on_a_gpu_and_what_it_is_told_anywhere():
    """Budgets follow the device; those that are named are taken."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert EngineConfig(4).scheduler(cpu) == SchedulerConfig(4, 4)
    larger = EngineConfig(4).scheduler(gpu)
    assert larger.prefill_beside > SchedulerConfig.prefill_beside and larger.encode_dry > SchedulerConfig.encode_dry
    for device in (cpu, gpu):
        told = EngineConfig(4, max_rows=2, prefill_beside=77).scheduler(device)
        assert (told.max_rows, told.prefill_beside) == (2, 77)
        assert told.prefill_alone == EngineConfig(4).scheduler(device).prefill_alone
