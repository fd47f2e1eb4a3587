"""The vocoder's training: losses that mean something, and a run that learns, is kept, and goes on."""

import argparse
import json

import tone_voice
import torch

from omni.train import vocoder as training
from omni.vocoder import checkpoint

SHAPE = training.CONFIG | {
    "upsample_rates": [8, 8, 5],
    "upsample_kernel_sizes": [8, 8, 9],
    "upsample_initial_channel": 32,
    "embedding_dim": 16,
    "model_in_dim": 16,
    "dur_predictor_params": {"encoder_embed_dim": 16, "var_pred_hidden_dim": 16, "var_pred_kernel_size": 3},
}


def test_spectra_of_equal_sounds_are_equal_and_of_others_are_not():
    sound = torch.randn(2, 4096, generator=torch.Generator().manual_seed(0))
    assert training.spectral_distance(sound, sound) < 1e-4
    assert training.spectral_distance(sound * 0.5, sound) > training.spectral_distance(sound * 0.9, sound) > 0.05


def train(folder, steps) -> None:
    (folder / "shape.json").write_text(json.dumps(SHAPE))
    parser = argparse.ArgumentParser()
    training.add_arguments(parser)
    arguments = f"--voice {folder} --output {folder / 'out'} --steps {steps} --batch 4 --heldout 0"
    assert training.main(parser.parse_args([*arguments.split(), "--config", str(folder / "shape.json")])) == 0


def test_a_run_learns_the_voice_and_a_later_one_goes_on(tmp_path):
    texts = ["abc defg h", "hgf edc ba", "ad cf eb", "bbbb aaaa"]
    recordings = tone_voice.write(tmp_path, texts)
    train(tmp_path, steps=90)
    vocoder = checkpoint.load(tmp_path / "out")
    units = [tone_voice.LETTERS.index(letter) for letter in texts[0]]
    durations = vocoder.durations(torch.tensor([units]))[0]
    assert (durations - tone_voice.FRAMES_PER_LETTER).abs().max() <= 2
    wanted = torch.from_numpy(recordings.samples(0))[None]
    known = torch.full((1, len(units)), tone_voice.FRAMES_PER_LETTER)
    learnt = training.spectral_distance(vocoder(torch.tensor([units]), known), wanted)
    untrained = training.CodeHiFiGAN(SHAPE | {"num_embeddings": len(tone_voice.LETTERS)})
    assert learnt < 0.85 * training.spectral_distance(untrained(torch.tensor([units]), known), wanted)

    before = torch.load(tmp_path / "out" / "training.pt")
    train(tmp_path, steps=92)
    after = torch.load(tmp_path / "out" / "training.pt")
    assert (before["steps"], after["steps"]) == (90, 92)
    assert after["seconds"] > before["seconds"]
