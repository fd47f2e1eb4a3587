"""Further adaptors: found by name, loaded beside the checkpoint's own, and refused by name where they do not fit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from omni.model import adaptors, checkpoint
from omni.model.adaptors import UnknownAdaptor
from omni.model.checkpoint import CheckpointError
from omni.model.omni import Omni
from omni.model.prompt import Utterance
from omni.model.sampling import Sampling
from tests.model import further_adaptor

SAMPLES = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)


@pytest.fixture
def directory(tiny_directory, tmp_path) -> Path:
    """The tiny checkpoint, with two further adaptors."""
    copied = Path(shutil.copytree(tiny_directory, tmp_path / "checkpoint"))
    for seed, name in enumerate(("law", "medical-2")):
        further_adaptor.put(copied, name, seed)
    return copied


def alone(directory: Path, name: str, where: Path) -> Omni:
    """A checkpoint whose own adaptor is the one of this name."""
    whole = Path(shutil.copytree(directory, where))
    weights = load_file(whole / "model.safetensors")
    own = load_file(whole / "adaptors" / name / "adaptor.safetensors")
    save_file(weights | {checkpoint.ADAPTOR + each: x for each, x in own.items()}, whole / "model.safetensors")
    shutil.rmtree(whole / "adaptors")
    return checkpoint.load(whole)


def test_a_further_adaptor_hears_as_it_would_as_the_checkpoints_own(directory, tmp_path):
    omni = checkpoint.load(directory)
    assert list(omni.adaptors) == ["law", "medical-2"] == list(adaptors.find(directory))
    conversation, sampling = [Utterance("user", speech=SAMPLES)], Sampling(max_new_tokens=6)
    answers = [list(omni.answer(conversation, sampling))]
    for name in omni.adaptors:
        expected = alone(directory, name, tmp_path / name)
        assert omni.speech_embeddings(SAMPLES, name).equal(expected.speech_embeddings(SAMPLES))
        answers.append(list(omni.answer(conversation, sampling, adaptor=name)))
        assert answers[-1] == list(expected.answer(conversation, sampling))
    assert len({tuple(step.token_id for step in answer) for answer in answers}) == 3  # they hear different things


def test_without_a_name_the_checkpoints_own_hears(directory, tiny_omni):
    omni = checkpoint.load(directory)
    assert omni.speech_embeddings(SAMPLES).equal(tiny_omni.speech_embeddings(SAMPLES))
    assert tiny_omni.adaptors == {} and omni.state_dict().keys() == tiny_omni.state_dict().keys()


def test_an_adaptor_may_tell_other_tokens_apart_than_the_checkpoints_own(directory):
    """A domain has its own words: how many tokens there are is the adaptor's matter, their embeddings are the LLM's."""
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"adaptor_tokens": 20}))
    weights = load_file(directory / "model.safetensors")
    shapes = {"table": (21, 64), "norms": (20,), "mean": (64,), "blank": (64,)}
    weights |= {f"{checkpoint.ADAPTOR}tokens.{name}": torch.ones(shape).half() for name, shape in shapes.items()}
    save_file(weights, directory / "model.safetensors")
    shutil.rmtree(directory / "adaptors")
    folder = further_adaptor.put(directory, "law", 3)
    omni = checkpoint.load(directory)
    ids = load_file(folder / "adaptor.safetensors")["tokens.ids"].long()
    assert omni.adaptors["law"].tokens.table.equal(omni.llm.embed_tokens.weight[ids])
    heard = omni.speech_embeddings(SAMPLES, "law")
    assert all(any(row.equal(each) for each in omni.adaptors["law"].tokens.table) for row in heard)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_they_load_in_any_precision(directory, dtype):
    omni = checkpoint.load(directory, dtype=dtype)
    parameters = [x for each in omni.adaptors.values() for x in each.parameters()]
    assert {x.dtype for x in parameters} == {dtype} and not any(x.requires_grad for x in parameters)


def test_an_unknown_name_lists_those_there_are(directory, tiny_omni):
    with pytest.raises(UnknownAdaptor, match=r"no adaptor 'lwa' here\. Select one of law, medical-2, or none"):
        checkpoint.load(directory).speech_embeddings(SAMPLES, "lwa")
    with pytest.raises(UnknownAdaptor, match="Select none"):
        tiny_omni.speech_embeddings(SAMPLES, "law")


@pytest.mark.parametrize("name", ["Law", "law_2", "a.b", "ö", "x" * 33])
def test_a_name_that_no_session_could_ask_for_is_refused(directory, name):
    (directory / "adaptors" / name).mkdir()
    with pytest.raises(CheckpointError, match=f"{name}: an adaptor's name has 1 to 32"):
        checkpoint.load(directory)


def test_a_hidden_folder_is_no_adaptor(directory):
    (directory / "adaptors" / ".cache").mkdir()
    assert list(checkpoint.load(directory).adaptors) == ["law", "medical-2"]


def test_another_shape_is_refused_by_the_tensors_name(directory):
    path = directory / "adaptors" / "law" / "adaptor.safetensors"
    good = load_file(path)
    for broken in (good | {"linear1.bias": torch.zeros(3)}, {k: x for k, x in good.items() if k != "linear1.bias"}):
        save_file(broken, path)
        with pytest.raises(CheckpointError, match=r"(?s)law/adaptor\.safetensors does not fit.*linear1\.bias"):
            checkpoint.load(directory)
    save_file(good | {"tokens.ids": torch.tensor([1, 2, 3])}, path)
    with pytest.raises(CheckpointError, match=r"(?s)law/adaptor\.safetensors does not fit.*tokens"):
        checkpoint.load(directory)


@pytest.mark.parametrize("ids", [[3, 259], [-1, 3], [5], [[1, 2]]], ids=["beyond", "below", "silence alone", "shape"])
def test_tokens_that_the_llm_does_not_have_are_refused(directory, ids):
    path = directory / "adaptors" / "law" / "adaptor.safetensors"
    save_file(load_file(path) | {"tokens.ids": torch.tensor(ids)}, path)
    with pytest.raises(CheckpointError, match=r"law/adaptor\.safetensors: tokens\.ids are not tokens"):
        checkpoint.load(directory)


@pytest.mark.parametrize("content", [None, b"", b"not tensors at all"], ids=["missing", "empty", "other"])
def test_a_file_that_holds_no_tensors_is_named(directory, content):
    path = directory / "adaptors" / "law" / "adaptor.safetensors"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"law/adaptor\.safetensors is missing or no safetensors file"):
        checkpoint.load(directory)


def test_an_encoder_beside_it_must_be_the_checkpoints(directory):
    """Exported from a run with a tuned encoder: the same tensors are fine, others are refused with what to do."""
    encoder = checkpoint.load(directory).encoder.state_dict()
    tuned = {name: x.half() for name, x in encoder.items() if name.startswith("blocks.1.")}
    path = directory / "adaptors" / "law" / "encoder.safetensors"
    save_file(tuned, path)
    assert "law" in checkpoint.load(directory).adaptors
    for other in ({"blocks.1.mlp.0.bias": tuned["blocks.1.mlp.0.bias"] + 1}, {"blocks.7.mlp.0.bias": torch.zeros(3)}):
        save_file(tuned | other, path)
        with pytest.raises(CheckpointError, match=r"(?s)mlp\.0\.bias is not the checkpoint's.*--tune-encoder 0"):
            checkpoint.load(directory)
