"""What stage 1 learns a dialogue from: serving's prompt, with every answer predicted where it stands."""

import numpy as np
import pytest
import torch

from omni.model.prompt import SPEECH, Utterance
from omni.train import answering, speech
from omni.train.base_llm import write_tiny
from omni.train.instructions import Example
from omni.train.stage1 import Run, load_llm


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm")
    write_tiny(folder)
    llm, tokenizer = load_llm(folder, torch.float32)
    made = Run.__new__(Run)
    made.llm, made.tokenizer = llm, tokenizer
    made.__post_init__()
    return made


def asked(instruction: str, response: str, aloud: bool):
    example = Example(instruction, response, "factual", instruction)
    return example, speech.Spoken(example, instruction, "v", torch.zeros(20, 8)) if aloud else None


def test_a_dialogue_is_laid_out_as_serving_builds_it(run):
    """Behind every position that predicts stands what it has to predict, or the end of an answer."""
    dialogue = [asked("One?", "It is one.", True), asked("Two?", "Two it is.", False), asked("Three?", "Yes.", True)]
    heard = [torch.randn(3, run.llm.config.hidden_size), torch.randn(5, run.llm.config.hidden_size)]
    row, where, labels = answering.lay_out(run, dialogue, iter(heard))
    said = Utterance("user", speech=np.zeros(0, np.float32))
    answers = [run.tokens(example.response) for example, _ in dialogue]
    first, second = (Utterance("assistant", token_ids=tuple(answer)) for answer in answers[:2])
    ids = run.prompt([said, first, Utterance("user", text="Two?"), second, said])
    ids += answers[2]
    waiting = iter(heard)
    slow = torch.cat([next(waiting) if token == SPEECH else run.embed([token]) for token in ids])
    assert torch.equal(row, slow)
    end = run.tokenizer.eos_token_id
    assert labels.tolist() == [token for answer in answers for token in (*answer, end)]
    for position, label in zip(where.tolist(), labels.tolist(), strict=True):
        behind = row[position + 1] if position + 1 < len(row) else run.embed([end])[0]
        assert torch.equal(behind, run.embed([label])[0])


def test_a_row_of_a_dialogue_costs_what_its_turns_cost_alone(run):
    """Rows of different lengths are padded, and padding changes nothing: the loss is that of all answers' tokens."""
    one, two = asked("One?", "It is one.", False), asked("And what is two then?", "Two.", False)
    together = answering.answer_loss(run, [[one], [one, two]])
    sizes, alone = zip(
        *(
            (len(answering.lay_out(run, each, iter(()))[2]), answering.answer_loss(run, [each]))
            for each in ([one], [one, two])
        ),
        strict=True,
    )
    expected = sum(size * loss for size, loss in zip(sizes, alone, strict=True)) / sum(sizes)
    assert torch.allclose(together, expected, atol=1e-5)
