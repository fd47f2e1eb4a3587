"""Phase hear: which frames mean which token, and a loss that equals the whole table's."""

import pytest
import torch
from tiny_ear import NUM_MELS, WIDTH, encoder

from omni.train import ear, stage1
from omni.train import hearing as hear
from omni.train.ear import Ear, new_adaptor


@pytest.mark.parametrize("blocks", ["", "(1,16,2,24)"])
def test_an_adaptor_learns_to_hear(blocks):
    """CTC against the embeddings teaches the adaptor which frames mean which token, at an embedding's length."""
    torch.manual_seed(0)
    embeddings = torch.randn(20, 16) + 0.5
    hearing = hear.Hearing(Ear(encoder(), new_adaptor(16, 8, 2, blocks)), embeddings, token_ids=[4, 9, 13])
    sounds = {token: torch.randn(15, 8) for token in (4, 9, 13)}  # three windows of five frames each
    said = [[4, 9], [9, 13], [13, 4]]
    frames = torch.stack([torch.cat([sounds[token] for token in tokens]) for tokens in said])
    optimizer = torch.optim.Adam(hearing.own_parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss = hearing.loss(hearing.adaptor(frames), [6, 6, 6], said)
        loss.backward()
        optimizer.step()
    heard = hearing.logits(hearing.adaptor(frames))[0].argmax(-1)
    assert [[hearing.token_ids[i] for i in row.unique_consecutive() if i < 3] for row in heard] == said
    lengths = (hearing.adaptor(frames) - hearing.mean).norm(dim=-1)
    assert lengths.mean().item() == pytest.approx(hearing.length, rel=0.2)


def test_ctc_over_the_tokens_of_a_batch_is_ctc_over_all():
    """All other tokens together are one class: loss and gradients are those of the whole table."""
    torch.manual_seed(0)
    hearing = hear.Hearing(Ear(encoder(), new_adaptor(16, 8, 0, "")), torch.randn(40, 16), token_ids=range(40))
    said = [[4, 9, 9], [13]]
    x = torch.randn(2, 7, 16, requires_grad=True)
    found = hearing.loss(x, [7, 4], said)
    (gradient,) = torch.autograd.grad(found, x)
    logits, stretch = hearing.logits(x)
    whole = torch.nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1),
        torch.tensor([4, 9, 9, 13]),
        torch.tensor([7, 4]),
        torch.tensor([3, 1]),
        blank=40,
    )
    whole = whole + 0.3 * torch.cat((stretch[0], stretch[1, :4])).mean()
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(gradient, torch.autograd.grad(whole, x)[0], atol=1e-5, rtol=1e-3)


def test_an_exported_adaptor_hands_on_the_tokens_it_hears(tmp_path, monkeypatch):
    """Through the files that ship: what comes out are the embeddings of what phase `hear` hears, then silence."""
    monkeypatch.setattr(ear, "whisper", encoder)
    torch.manual_seed(0)
    embeddings = torch.randn(20, 64)
    hearing = hear.Hearing(Ear(encoder(), new_adaptor(64, WIDTH, 1, "")), embeddings, token_ids=[4, 9, 13])
    torch.nn.init.normal_(hearing.adaptor.linear2.weight)
    run = stage1.Run.__new__(stage1.Run)
    run.folder, run.ear, run.tokens = tmp_path, Ear(hearing.encoder, hearing.adaptor), lambda text: [17]
    hear.export_tokens(run, hearing)
    mel = torch.randn(200, NUM_MELS)
    exported = ear.load(tmp_path / "export/adaptor.safetensors", embeddings)([mel])[0][0]
    best = hearing.logits(run.ear([mel])[0])[0][0].argmax(-1).unique_consecutive()
    heard = [hearing.token_ids[i] for i in best.tolist() if i < 3]
    assert heard
    assert exported.equal(embeddings[[*heard, *[17] * (20 - len(heard))]])
