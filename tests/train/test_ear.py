"""Encoder and adaptor together: batched = alone, what is masked, what is tuned and how it travels."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_ear import NUM_MELS, WIDTH, encoder

from omni.model import mini
from omni.model.checkpoint import TUNED_ENCODER, CheckpointError
from omni.train import ear


@pytest.fixture
def tiny(monkeypatch) -> ear.Ear:
    monkeypatch.setattr(ear, "whisper", encoder)
    torch.manual_seed(0)
    return ear.Ear(encoder(), ear.new_adaptor(24, WIDTH, 1, ""))


def test_a_question_is_heard_the_same_in_company(tiny):
    mels = [torch.randn(n, NUM_MELS).half() for n in (30, 70, 50)]
    together, lengths = tiny(mels)
    assert lengths.tolist() == [3, 7, 5]
    for row, length, mel in zip(together, lengths.tolist(), mels, strict=True):
        torch.testing.assert_close(row[:length], tiny([mel])[0][0], atol=1e-5, rtol=1e-5)


def test_masked_are_stretches_and_bands_at_the_rows_mean():
    torch.manual_seed(0)
    lengths = torch.tensor([100] * 30 + [60] * 20)
    mel = torch.rand(50, 100, NUM_MELS)
    found = ear.masked(mel, lengths)
    changed = found != mel
    for row, length in zip(range(50), lengths.tolist(), strict=True):
        assert found[row][changed[row]].unique().numel() <= 1
        if changed[row].any():
            assert found[row][changed[row]][0] == pytest.approx(float(mel[row, :length].mean()), abs=1e-5)
    times, bands = changed.all(-1).sum(1), changed.all(1).sum(1)  # whole frames, whole bands
    assert 0 < times.float().mean() <= ear.TIME_MASKS * ear.LONGEST_TIME_MASK
    assert 0 < bands.float().mean() <= ear.BAND_MASKS * ear.WIDEST_BAND_MASK
    assert torch.equal(changed, changed.all(-1, keepdim=True) | changed.all(1, keepdim=True))


def test_what_was_tuned_ships_beside_the_adaptor_and_comes_back(tiny, tmp_path):
    mel, embeddings = torch.randn(40, NUM_MELS), torch.randn(20, 24)
    parameters = tiny.tune(1)
    assert {id(x) for x in parameters} == {id(x) for x in tiny.encoder.parameters() if x.requires_grad}
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    tiny([mel])[0].square().sum().backward()
    optimizer.step()
    ear.save_tuned(tiny.encoder, tmp_path)
    tensors = load_file(tmp_path / TUNED_ENCODER)
    assert tensors and all(name.startswith(("blocks.1.", "ln_post.")) for name in tensors)
    save_file({name: x.half() for name, x in tiny.adaptor.state_dict().items()}, tmp_path / "adaptor.safetensors")
    back = ear.load(tmp_path / "adaptor.safetensors", embeddings)
    torch.testing.assert_close(back([mel])[0], tiny([mel])[0], atol=0.02, rtol=0.02)
    assert not any(x.requires_grad for x in back.parameters())
    ear.save_tuned(encoder(), tmp_path)  # an untuned one leaves nothing behind
    assert not (tmp_path / TUNED_ENCODER).exists()


def test_a_frozen_encoder_gets_no_gradient(tiny):
    assert tiny.tune(0) == []
    tiny([torch.randn(40, NUM_MELS)])[0].sum().backward()
    assert all(x.grad is None for x in tiny.encoder.parameters())
    assert all(x.grad is not None for x in tiny.adaptor.parameters())


def test_tensors_that_no_encoder_has_are_refused():
    for name, x in (("blocks.9.attn.key.weight", torch.zeros(16, 16)), ("ln_post.weight", torch.zeros(4))):
        with pytest.raises(CheckpointError, match=name):
            mini.replace(encoder(), {name: x})
