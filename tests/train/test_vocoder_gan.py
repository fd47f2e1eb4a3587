"""Adversarial training of the vocoder, tiny: it learns, can be listened to, and goes on as if undisturbed."""

import json

import numpy as np
import pytest
import soundfile
import tone_voice
import torch
from test_vocoder import SHAPE

from omni import cli
from omni.train import metrics, vocoder_gan
from omni.train.discriminators import Discriminators
from omni.train.units import Units
from omni.vocoder import checkpoint

TEXTS = ["abc defg h", "hgf edc ba", "ad cf eb", "bbbb aaaa", "cafe bad", "head gab"]


@pytest.fixture
def voice(tmp_path):
    tone_voice.write(tmp_path / "voice", TEXTS)
    (tmp_path / "shape.json").write_text(json.dumps(SHAPE))
    return tmp_path


def run(monkeypatch, folder, output: str, steps: int, *more: str) -> int:
    words = ["train", "vocoder-gan", "--voice", str(folder / "voice"), "--output", str(folder / output), "--config",
             str(folder / "shape.json"), "--steps", str(steps), "--batch", "2", "--narrow", "32", "--heldout", "2",
             "--listen", "1", "--rate", "2e-3", "--log-every", "1", *more]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["omni", *words])
    return cli.main(words)


def test_the_published_generator():
    """13.5 M parameters, as the published vocoder has."""
    config = vocoder_gan.PUBLISHED | {"num_embeddings": 1000}
    with torch.device("meta"):
        model = vocoder_gan.CodeHiFiGAN(config)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 13.5


def test_mels_of_a_tone_lie_where_the_tone_is():
    time = torch.arange(8960) / 16_000
    low, high = (vocoder_gan.log_mel(torch.sin(2 * torch.pi * hertz * time)[None]) for hertz in (300, 3000))
    assert low.shape == (1, 35, 80)
    assert low.mean(1).argmax() < 15 < 45 < high.mean(1).argmax()


def test_weight_norm_changes_how_it_learns_and_not_what_it_says(voice):
    units = Units.load(voice / "voice" / "units.safetensors")
    model = vocoder_gan.new_generator(SHAPE | {"num_embeddings": len(units.centroids)}, units, None)
    rows, ones = torch.tensor([[1, 2, 3]]), torch.full((1, 3), 4)
    copied = vocoder_gan.plain(model)
    torch.testing.assert_close(copied(rows, ones), model(rows, ones))
    assert any("parametrizations" in name for name in model.state_dict())
    checkpoint.save(copied, SHAPE | {"num_embeddings": len(units.centroids)}, voice / "out")
    torch.testing.assert_close(checkpoint.load(voice / "out")(rows, ones), model(rows, ones), rtol=1e-4, atol=1e-5)


def test_a_run_learns_and_leaves_samples_to_listen_to(voice, monkeypatch):
    assert run(monkeypatch, voice, "out", 40, "--listen-every", "20", "--save-every", "20") == 0
    rows = metrics.read(voice / "out" / "metrics.csv")
    mels = [row["mel"] for row in rows if "mel" in row]
    assert len(mels) == 40 and np.mean(mels[-5:]) < 0.8 * np.mean(mels[:5])
    assert {"discriminators", "adversarial", "features", "durations", "rate"} <= rows[0].keys()
    heard = [row["heldout_mel"] for row in rows if "heldout_mel" in row]
    assert len(heard) == 2 and heard[1] < heard[0]
    samples = sorted(str(path.relative_to(voice / "out")) for path in voice.rglob("samples/*/*.wav"))
    assert samples == ["samples/00000020/4.wav", "samples/00000040/4.wav", "samples/recorded/4.wav"]
    assert soundfile.info(voice / "out" / samples[0]).samplerate == 16_000
    vocoder = checkpoint.load(voice / "out")
    assert vocoder.speak([1, 2, 3]).abs().max() > 0


def test_a_stopped_run_ends_as_an_undisturbed_one_from_any_checkpoint(voice, monkeypatch):
    more = ("--save-every", "2", "--listen-every", "100", "--keep", "9")
    assert run(monkeypatch, voice, "whole", 6, *more) == 0
    taken, steps = vocoder_gan.Training.step, iter(range(5))

    def dies(*args):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return taken(*args)

    monkeypatch.setattr(vocoder_gan.Training, "step", dies)
    assert run(monkeypatch, voice, "parts", 6, *more) == 130  # after step 5; that of step 4 is kept
    monkeypatch.setattr(vocoder_gan.Training, "step", taken)
    for again in ((), ("--from-step", "2")):
        assert run(monkeypatch, voice, "parts", 6, *more, *again) == 0
        whole, parts = (
            torch.load(voice / name / "checkpoints" / "00000006.pt", weights_only=True) for name in ("whole", "parts")
        )
        for part in ("model", "judges"):
            assert all(torch.equal(x, parts[part][name]) for name, x in whole[part].items())
        assert [row["step"] for row in metrics.read(voice / "parts" / "metrics.csv") if "mel" in row] == [*range(1, 7)]


def test_a_checkpoint_that_is_not_there_is_named(voice, monkeypatch, capsys):
    assert run(monkeypatch, voice, "out", 2, "--save-every", "1", "--keep", "1") == 0
    assert [path.name for path in (voice / "out" / "checkpoints").iterdir()] == ["00000002.pt"]
    assert run(monkeypatch, voice, "out", 2, "--from-step", "1") == 2
    assert "no checkpoint of step 1; it has [2]" in capsys.readouterr().err
    assert run(monkeypatch, voice, "more", 2, "--heldout", "6") == 2
    assert "leave none to learn" in capsys.readouterr().err
    (voice / "other").mkdir()
    (voice / "other" / "config.json").write_text('{"generator": "source_filter"}')
    assert run(monkeypatch, voice, "more", 2, "--start", str(voice / "other")) == 2
    assert "only CodeHiFiGAN is trained here" in capsys.readouterr().err
    (voice / "voice" / "speech.npy").unlink()
    assert run(monkeypatch, voice, "more", 2) == 2
    assert "holds no recordings" in capsys.readouterr().err


def test_it_goes_on_from_a_vocoder_that_regression_trained(voice, monkeypatch):
    """--start takes weights and shape from a folder that serves."""
    assert run(monkeypatch, voice, "first", 1) == 0
    wanted = checkpoint.load(voice / "first")
    units = Units.load(voice / "voice" / "units.safetensors")
    model = vocoder_gan.new_generator(wanted.config, units, voice / "first")
    rows, ones = torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.long)
    torch.testing.assert_close(model(rows, ones), wanted(rows, ones), rtol=1e-4, atol=1e-5)
    assert run(monkeypatch, voice, "second", 1, "--start", str(voice / "first")) == 0


def test_only_the_generator_learns_from_the_generators_losses(voice):
    units = Units.load(voice / "voice" / "units.safetensors")
    model = vocoder_gan.new_generator(SHAPE | {"num_embeddings": len(units.centroids)}, units, None)
    training = vocoder_gan.Training(model, Discriminators(narrow=32), 1e-3, torch.device("cpu"))
    training.judging.param_groups[0]["lr"] = 0.0
    before = {name: x.clone() for name, x in training.judges.named_parameters()}
    training.step(torch.ones(2, 28, dtype=torch.long), torch.randn(2, 8960) * 0.1, [([1, 2], [2, 3])])
    assert all(torch.equal(x, before[name]) for name, x in training.judges.named_parameters())
    assert all(p.requires_grad for p in training.judges.parameters())
