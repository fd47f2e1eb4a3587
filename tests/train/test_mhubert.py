"""mHuBERT's units from a tiny random HubertModel: the layer fairseq names, the nearest centroid, safe files only."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import tone_voice
import torch
from safetensors.torch import load_file, save_file
from transformers import HubertConfig, HubertModel

from omni import cli
from omni.train import mhubert
from omni.train.mhubert import MHubert
from omni.train.unit_reader import UnitsError, find, load
from omni.train.units import Units

TINY = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48,
        "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    HubertModel(HubertConfig(**TINY)).save_pretrained(tmp_path / "hubert")
    np.save(tmp_path / "km.npy", torch.randn(20, 32).double().numpy())
    return tmp_path


def sound(samples: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(samples).astype(np.float32) * 0.1


@pytest.mark.parametrize("layer", [1, 3, 4])
def test_units_are_the_nearest_centroids_of_the_layers_states(folder, layer):
    """Layer n counted from 1 is hidden_states[n]: the whole model's, though later layers are left out here."""
    read = MHubert(folder / "hubert", folder / "km.npy", layer)
    whole = HubertModel.from_pretrained(folder / "hubert").eval()
    with torch.inference_mode():
        states = whole(torch.from_numpy(sound(16_000))[None], output_hidden_states=True).hidden_states[layer][0]
    torch.testing.assert_close(read.states(sound(16_000)), states)
    centroids = torch.from_numpy(np.load(folder / "km.npy")).float()
    nearest = [int((centroids - state).pow(2).sum(1).argmin()) for state in states]
    codes = read(sound(16_000))
    assert codes[:49] == nearest and codes[49:] == nearest[-1:]
    assert read.num_units == 20 and len(set(codes)) > 1


def test_samples_are_normalised_where_the_features_are(tmp_path):
    """As fairseq does it: a base model hears loudness, a large one (feat_extract_norm "layer") does not."""
    np.save(tmp_path / "km.npy", np.eye(32))
    for norm, deaf in (("group", False), ("layer", True)):
        HubertModel(HubertConfig(**TINY, feat_extract_norm=norm)).save_pretrained(tmp_path / norm)
        read = MHubert(tmp_path / norm, tmp_path / "km.npy", 2)
        loud, quiet = read.states(sound(8_000) + 0.3), read.states(0.1 * sound(8_000))
        assert torch.allclose(loud, quiet, atol=1e-3) == deaf


def test_centroids_come_as_safetensors_too(folder):
    centroids = torch.from_numpy(np.load(folder / "km.npy")).float()
    save_file({"centroids": centroids}, folder / "km.safetensors")
    assert torch.equal(mhubert.read_centroids(folder / "km.safetensors"), centroids)


class Opened:
    """A pickle that leaves a file behind when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def write_bad(folder):
    for name in ("km1000.bin", "pickle.npy", "hubert.pt"):
        (folder / name).write_bytes(pickle.dumps(Opened(folder / "opened")))
    np.save(folder / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(folder / "flat.npy", np.zeros(5))
    np.save(folder / "wide.npy", np.zeros((5, 7)))
    np.save(folder / "nan.npy", np.full((5, 32), np.nan))
    (folder / "empty").mkdir()


@pytest.mark.parametrize(
    ("model", "kmeans", "problem"),
    [
        ("hubert", "km1000.bin", "if you trust it, convert it once.*cluster_centers_"),
        ("hubert", "objects.npy", "holds no centroids"),
        ("hubert", "pickle.npy", "holds no centroids"),
        ("hubert", "gone.npy", "holds no centroids"),
        ("hubert", "flat.npy", r"shape \(5,\)"),
        ("hubert", "nan.npy", "finite"),
        ("hubert", "wide.npy", "centroids of 7 numbers; .*states have 32"),
        ("hubert.pt", "km.npy", "a pickle is not opened here"),
        ("empty", "km.npy", "config.json is not there"),
        ("hubert", "km.npy", "no layer 11"),
    ],
    ids=[
        "pickled k-means",
        "objects",
        "pickle as npy",
        "missing",
        "flat",
        "nan",
        "other width",
        "fairseq's",
        "empty",
        "layers",
    ],
)
def test_what_cannot_be_used_is_named_and_no_pickle_is_opened(folder, model, kmeans, problem):
    write_bad(folder)
    with pytest.raises(UnitsError, match=problem):
        MHubert(folder / model, folder / kmeans)
    assert not (folder / "opened").exists()


def run(monkeypatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["omni", "train", *words])
    return cli.main(["train", *words])


def test_the_command_writes_what_the_vocoder_and_the_unit_decoder_train_on(folder, monkeypatch, capsys):
    voice = folder / "voice"
    recordings = tone_voice.write(voice, ["abc def", "ad cf eb"])
    argv = ["units", "--mhubert", str(folder / "hubert"), "--kmeans", str(folder / "km.npy"), "--layer", "3"]
    assert run(monkeypatch, *argv, "--voice", str(voice)) == 0
    codes = recordings.split_frames(np.load(voice / "codes.npy"))
    assert [len(each) for each in codes] == [recordings.num_frames(i) for i in range(2)]
    read = MHubert(folder / "hubert", folder / "km.npy", 3)
    assert codes[1].tolist() == read(recordings.samples(1))
    assert len(Units.load(voice / "units.safetensors").centroids) == 20
    assert load_file(voice / "units.safetensors")["centroids"].shape == (20, 32)

    with pytest.raises(UnitsError, match="mHuBERT's units"):
        load(voice / "units.safetensors")
    assert run(monkeypatch, *argv, "--voice", str(folder / "nothing")) == 2
    assert "name --answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "problem"),
    [({"mhubert": "a"}, "belong together"), ({"units": "u", "mhubert": "a", "kmeans": "b"}, "name one")],
    ids=["half", "both"],
)
def test_one_kind_of_units_is_asked_for(asked, problem):
    assert find() is None
    with pytest.raises(UnitsError, match=problem):
        find(**asked)


def test_a_file_that_holds_no_units_is_named(tmp_path):
    (tmp_path / "x").write_text(json.dumps({}))
    with pytest.raises(UnitsError, match=r"no units.safetensors"):
        load(tmp_path / "x")
