"""Published files load; a broken file is named in the error, and nothing is ever unpickled."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omni.model import checkpoint
from omni.model.checkpoint import CheckpointError
from omni.model.config import ConfigError

GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoint"
NAME = "Llama-3.1-8B-Omni-tiny"


@pytest.fixture
def published(tmp_path) -> Path:
    """A copy of the golden checkpoint: sharded, with its Whisper file beside it."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "checkpoint")) / NAME


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    return {name: x for path in directory.glob("*.safetensors") for name, x in load_file(path).items()}


def change_config(directory: Path, **changes) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_encoder_comes_from_the_whisper_file_where_it_is_there(published, golden):
    """The published code loads it over the shards' copy; without the file the shards' copy serves."""
    weight = "model.speech_encoder.conv1.weight"
    shards = weights_of(published)
    shutil.rmtree(published.parent / "models")
    change_config(published, speech_encoder_heads=2)
    loaded = checkpoint.load(published)
    torch.testing.assert_close(loaded.encoder.conv1.weight, shards[weight].float())
    torch.testing.assert_close(golden.encoder.conv1.weight, loaded.encoder.conv1.weight)


def test_sharded_and_whole_are_the_same(published, golden):
    weights = weights_of(published)
    for path in published.glob("model*"):
        path.unlink()
    save_file(weights, published / "model.safetensors")
    whole = checkpoint.load(published)
    for name, x in golden.state_dict().items():
        assert whole.state_dict()[name].equal(x), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_checkpoint_loads_in_any_precision(tiny_directory, dtype):
    omni = checkpoint.load(tiny_directory, dtype=dtype)
    assert {x.dtype for x in omni.parameters()} == {dtype}
    assert not any(x.requires_grad for x in omni.parameters())


def test_a_missing_shard_is_named(published):
    (published / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00004\.safetensors is missing"):
        checkpoint.load(published)


def test_an_index_that_leads_out_of_its_folder_is_refused(published):
    index = published / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../../elsewhere.safetensors"}}))
    (published.parents[1] / "elsewhere.safetensors").touch()
    with pytest.raises(CheckpointError, match="elsewhere"):
        checkpoint.load(published)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("speech_generator.output_proj.bias", "speech generator"),
        ("model.speech_projector.linear1.weight", "speech projector"),
        ("model.layers.1.mlp.up_proj.weight", "language model"),
        ("model.speech_encoder.conv2.bias", "speech encoder"),
    ],
)
def test_a_missing_or_misshapen_weight_is_named_with_its_part(tiny_directory, tmp_path, name, what):
    directory = Path(shutil.copytree(tiny_directory, tmp_path / "broken"))
    weights = load_file(directory / "model.safetensors")
    for broken in ({key: x for key, x in weights.items() if key != name}, weights | {name: torch.zeros(3)}):
        save_file(broken, directory / "model.safetensors")
        with pytest.raises(CheckpointError, match=f"(?s){what}.*{name.split('.')[-2]}"):
            checkpoint.load(directory)


def test_a_checkpoint_without_an_encoder_says_where_it_looked(tiny_directory, tmp_path):
    directory = Path(shutil.copytree(tiny_directory, tmp_path / "broken"))
    weights = load_file(directory / "model.safetensors")
    save_file({key: x for key, x in weights.items() if "speech_encoder" not in key}, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match="no speech encoder"):
        checkpoint.load(directory)


def test_a_missing_tokenizer_is_named(tiny_directory, tmp_path):
    directory = Path(shutil.copytree(tiny_directory, tmp_path / "broken"))
    (directory / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer.json"):
        checkpoint.load(directory)


class Marker:
    """Unpickled, it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_a_whisper_file_with_code_in_it_is_refused_and_not_run(published, tmp_path, how):
    path, marker = published.parent / "models/speech_encoder/large-v3.pt", Marker(tmp_path / "ran")
    if how == "torch.save":
        torch.save({"dims": marker, "model_state_dict": {}}, path)
    else:
        path.write_bytes(pickle.dumps({"dims": marker, "model_state_dict": {}}))
    with pytest.raises(CheckpointError, match=r"large-v3\.pt is not a Whisper checkpoint"):
        checkpoint.load(published)
    assert not (tmp_path / "ran").exists()


def test_a_whisper_file_loads_by_itself(golden):
    encoder = checkpoint.load_whisper(GOLDEN / "models/speech_encoder/large-v3.pt")
    assert encoder.config == golden.encoder.config
    assert encoder.conv1.weight.equal(golden.encoder.conv1.weight)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"speech_generator_type": "ar"}, "Only 'ctc' is"),
        ({"ctc_decoder_config": "(2,64)"}, r"expected '\(layers,width,heads,ffn\)'"),
        ({"speech_input": "short"}, "Select one of padded, true-length"),
        ({"prompt_style": "vicuna"}, "Select one of llama_3, chatml"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn' is not supported"),
    ],
    ids=["generator", "unit decoder", "speech input", "prompt", "rope"],
)
def test_a_config_we_cannot_serve_stops_the_start(published, changes, words):
    change_config(published, **changes)
    with pytest.raises(ConfigError, match=words):
        checkpoint.load(published)


@pytest.mark.parametrize(
    ("content", "words"), [(None, "does not exist"), ("{", "is not JSON"), ("{}", "lacks the key")]
)
def test_a_broken_config_file_is_named(tmp_path, content, words):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=f"config.json {words}"):
        checkpoint.load(tmp_path)
