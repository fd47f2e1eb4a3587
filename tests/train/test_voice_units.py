"""A few texts by the real voice: its states become units, and a vocoder learns to speak them."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from omni.train import source_filter, voice_units
from omni.train.answers import Recordings
from omni.train.voice_states import SAMPLES_PER_FRAME, NothingToSay, VoiceStates, decoder_weights
from omni.vocoder import checkpoint
from omni.vocoder.hifigan import Padding
from omni.vocoder.source_filter import HALVES, SourceFilter, Stack

TEXTS = ["The capital of France is Paris.", "I can hear you very well, thank you.", "Two and two make four, I think."]
TEXTS += ["What a lovely day it is outside!", "Dogs work with people.", "I was about to say the same thing."]


def arguments(module, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voice")
    rows = [
        {"instruction": "Speak.", "response": text, "kind": "factual"} for text in [*TEXTS, " "]
    ]  # one says nothing
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--answers", str(folder / "answers.jsonl"), "--voice", str(folder / "voice"), "--num-units", "60")
    assert voice_units.main(arguments(voice_units, *words)) == 0
    return folder


def test_the_voice_says_when_it_says_what():
    said = VoiceStates()("The capital of France is Paris.")
    assert len(said.phones) == len(said.states) == len(said.frames)
    assert len(said.f0) == len(said.energy) == HALVES * said.frames.sum()
    assert said.word_ends is not None
    assert len(said.word_ends) == 6
    assert 100 < np.median(said.f0[said.f0 > 60]) < 300
    with pytest.raises(NothingToSay):
        VoiceStates()(" ")


def test_every_frame_has_a_unit_of_its_own_phone(voice: Path):
    recordings = Recordings(voice / "voice")
    units = load_file(voice / "voice" / "units.safetensors")
    owners = [chr(i) for i in units["phones"].tolist()]
    codes = recordings.split_frames(np.load(voice / "voice" / "codes.npy"))
    assert len(owners) <= 70
    for row, frames in zip(recordings.rows, codes, strict=True):
        assert len(frames) == row["samples"] // SAMPLES_PER_FRAME
        middles = (np.concatenate(([0], row["ends"][:-1])) + row["ends"]) / 2  # seconds
        for phone, middle in zip(row["phones"], middles, strict=True):
            assert owners[frames[int(middle / recordings.frame_seconds)]] == voice_units.phone_of(phone)


def test_known_units_are_taken_as_they_are(voice: Path):
    known = voice / "voice" / "units.safetensors"
    words = ("--answers", str(voice / "answers.jsonl"), "--voice", str(voice / "again"), "--units", str(known))
    voice_units.main(arguments(voice_units, *words))
    assert np.load(voice / "again" / "codes.npy").tolist() == np.load(voice / "voice" / "codes.npy").tolist()
    again = load_file(voice / "again" / "units.safetensors")["centroids"]
    torch.testing.assert_close(again, load_file(known)["centroids"], rtol=1e-3, atol=1e-4)


def test_with_the_whole_view_it_starts_as_its_teacher(monkeypatch: pytest.MonkeyPatch):
    """Units that are the true states, all taps kept: the decoder's spectra are the voice's own."""
    weights, said = decoder_weights(), VoiceStates()(TEXTS[0])
    whole = source_filter.CONFIG["decoder"] | {"reach": source_filter.TEACHER_REACH}
    monkeypatch.setitem(source_filter.CONFIG, "decoder", whole)
    model = source_filter.new_model(len(said.states), torch.from_numpy(said.states), weights).eval()
    teacher = Stack(130, 4 * model.bins, 256, 768, source_filter.TEACHER_REACH)
    teacher.load_state_dict(weights)
    frames = torch.arange(len(said.states)).repeat_interleave(torch.from_numpy(said.frames))[None]
    f0, energy, inside = (
        torch.from_numpy(said.f0)[None],
        torch.from_numpy(said.energy)[None],
        Padding(None, frames.shape[1]),
    )
    with torch.inference_mode():
        made = model.spectra(model.dict(frames).transpose(1, 2), f0, energy, inside)
        states = torch.from_numpy(said.states)[frames].transpose(1, 2).repeat_interleave(HALVES, -1)
        told = torch.stack((torch.log(1 + f0.clamp(min=0)) / 5, energy / 5), 1)
        wanted = teacher(torch.cat((states, told), 1), inside.upsampled(HALVES))
    torch.testing.assert_close(made, wanted)


def test_a_few_steps_make_a_vocoder_that_loads_and_comes_nearer(voice: Path, tmp_path: Path):
    base = ("--voice", str(voice / "voice"), "--batch", "2", "--minutes", "10", "--heldout", "0")
    for steps in ("1", "12"):
        assert (
            source_filter.main(arguments(source_filter, *base, "--output", str(tmp_path / steps), "--steps", steps))
            == 0
        )
    vocoders = [checkpoint.load(tmp_path / steps) for steps in ("1", "12")]
    teacher = Stack(130, 1604, 256, 768, source_filter.TEACHER_REACH)
    teacher.load_state_dict(decoder_weights())
    data = source_filter.Voice(voice / "voice", 0)
    losses = []
    for vocoder in vocoders:
        assert isinstance(vocoder, SourceFilter)
        batch = data.segments(4, source_filter.random.Random(5))
        losses.append(sum(float(x) for x in source_filter.losses(vocoder, teacher, batch)))
    assert losses[1] < losses[0]
    samples = vocoders[1].speak(np.load(voice / "voice" / "codes.npy")[:40].tolist())
    assert len(samples) % SAMPLES_PER_FRAME == 0
    assert 0.001 < samples.abs().max() < 1.5


def test_another_vocoders_knowledge_is_taken_but_not_its_units(voice: Path, tmp_path: Path):
    base = ("--voice", str(voice / "voice"), "--batch", "2", "--heldout", "0", "--steps", "1")
    source_filter.main(arguments(source_filter, *base, "--output", str(tmp_path / "first")))
    other = source_filter.new_model(7, torch.randn(7, 128), decoder_weights())
    source_filter.go_on_from(other, tmp_path / "first")
    first = checkpoint.load(tmp_path / "first")
    assert isinstance(first, SourceFilter)
    assert other.dict.num_embeddings == 7
    assert torch.equal(other.prosody.head.weight, first.prosody.head.weight)
