"""`omni bench agreement`: float32 agrees with itself wholly, and a wrong model does not."""

import pytest
import torch

from bench import agreement
from omni import checkpoints, cli
from omni.engine.engine import Engine, EngineConfig
from omni.model import checkpoint


def test_float32_agrees_with_itself(bench):
    found, said = bench("agreement", "--shape", "tiny", "--questions", "2", "--max-new-tokens", "8")
    assert found["tokens"] == 16 and found["questions"] == found["equal_answers"] == 2
    assert found["same_token"] == found["units_in_common"] == 1.0
    assert "| float32, float weights | 100.0 % of 16 | 2 of 2 | 100.0 % |" in said


def test_another_model_is_told_from_it():
    """Noise on the weights changes some tokens, and not all that are chosen after the same words."""
    tiny = checkpoints.resolve("tiny").model
    exact, rough = checkpoint.load(tiny), checkpoint.load(tiny)
    with torch.no_grad():
        for parameter in rough.llm.parameters():
            parameter.mul_(1 + 0.03 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    engines = [Engine(each, EngineConfig(num_slots=2, max_answer=12)) for each in (exact, rough)]
    found = agreement.judge([agreement.compare(*engines, agreement.questions.recordings()[0], 12)])
    assert found["tokens"] == 12 and 0 < found["same_token"] < 1 and found["equal_answers"] == 0
    assert 0 < found["units_in_common"] < 1


@pytest.mark.parametrize("words", [["--questions", "0"], ["--max-new-tokens", "0"]], ids=" ".join)
def test_bad_wishes_are_told(words: list[str], capsys):
    assert cli.main(["bench", "agreement", *words]) == 2
    assert "at least one" in capsys.readouterr().out
