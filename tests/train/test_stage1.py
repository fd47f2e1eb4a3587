"""Stage 1's parts: deltas that merge into the LLM they were trained beside, scores, and batches."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from omni.model import mini
from omni.train import speech, stage1
from omni.train.instructions import Example


@pytest.fixture
def llm():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).requires_grad_(False).eval()


def test_merged_deltas_answer_as_trained_ones(llm, tmp_path):
    """What mini.merge adds to the weights equals what LowRank adds to the outputs."""
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    weights = {name: x.clone() for name, x in llm.state_dict().items()}
    deltas = stage1.add_deltas(llm, rank=3)
    for delta in deltas.values():
        torch.nn.init.normal_(delta.lora_b, std=0.1)
    trained = llm(ids).logits
    stage1.save_deltas(deltas, tmp_path / "llm_delta.safetensors", torch.float32)
    plain = LlamaForCausalLM(llm.config).eval()
    mini.merge(weights, tmp_path / "llm_delta.safetensors")
    plain.load_state_dict(weights)
    torch.testing.assert_close(plain(ids).logits, trained, rtol=1e-4, atol=1e-5)
    assert len(load_file(tmp_path / "llm_delta.safetensors")) == 2 * 2 * 7  # A and B, two blocks, seven layers each


def test_new_deltas_change_nothing(llm):
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    before = llm(ids).logits
    stage1.add_deltas(llm, rank=3)
    torch.testing.assert_close(llm(ids).logits, before)


@pytest.mark.parametrize("blocks", ["", "(1,16,2,24)"])
def test_an_adaptor_learns_to_hear(blocks):
    """CTC against the embeddings teaches the adaptor which frames mean which token, at an embedding's length."""
    torch.manual_seed(0)
    embeddings = torch.randn(20, 16) + 0.5
    hearing = stage1.Hearing(stage1.new_adaptor(16, 8, 2, blocks), embeddings, token_ids=[4, 9, 13])
    sounds = {token: torch.randn(15, 8) for token in (4, 9, 13)}  # three windows of five frames each
    said = [[4, 9], [9, 13], [13, 4]]
    frames = torch.stack([torch.cat([sounds[token] for token in tokens]) for tokens in said])
    optimizer = torch.optim.Adam(hearing.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss = hearing.loss(hearing.adaptor(frames), [6, 6, 6], said)
        loss.backward()
        optimizer.step()
    heard = hearing(frames)[0].argmax(-1)
    assert [[hearing.token_ids[i] for i in row.unique_consecutive() if i < 3] for row in heard] == said
    lengths = (hearing.adaptor(frames) - hearing.mean).norm(dim=-1)
    assert lengths.mean().item() == pytest.approx(hearing.length, rel=0.2)


def test_ctc_over_the_tokens_of_a_batch_is_ctc_over_all():
    """All other tokens together are one class: loss and gradients are those of the whole table."""
    torch.manual_seed(0)
    hearing = stage1.Hearing(stage1.new_adaptor(16, 8, 0, ""), torch.randn(40, 16), token_ids=range(40))
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


def test_every_utterance_is_heard_once_before_any_is_heard_again(tmp_path):
    """New shards join what is still to be heard."""
    for name, first in (("a", 0), ("b", 8)):
        some = [
            speech.Spoken(Example(f"{i}", "", "heard", "heard"), f"{i}", "v", torch.zeros(5 + 5 * (i % 3), 8))
            for i in range(first, first + 8)
        ]
        speech.write_shard(tmp_path / f"{name}.safetensors", some)
        if name == "a":
            corpus = stage1.Corpus(tmp_path, seed=0)
            drawn = [each.text for each in corpus.draw_spoken(2)]
    corpus.refresh()
    drawn += [each.text for _ in range(7) for each in corpus.draw_spoken(2)]
    assert sorted(map(int, drawn)) == list(range(16))


def test_masked_frames_are_stretches_of_nothing():
    torch.manual_seed(0)
    frames = stage1.masked(torch.ones(50, 100, 3))
    lost = (frames == 0).all(-1)
    assert ((frames == 1).all(-1) | lost).all()
    assert 0 < lost.sum(1).float().mean() <= stage1.MASKS * stage1.LONGEST_MASK


def test_an_adaptor_gets_blocks_later(tmp_path):
    """A phase goes on from a plain adaptor's state: what it has learnt stays, moments too, and blocks join."""
    torch.manual_seed(0)

    def begin(blocks):
        hearing = stage1.Hearing(stage1.new_adaptor(16, 8, 1, blocks), torch.randn(20, 16), [4, 9])
        optimizer = torch.optim.AdamW(hearing.parameters(), lr=1e-3, fused=True)
        run = stage1.Run.__new__(stage1.Run)
        run.folder, run.phase, run.adaptor, run.steps, run.seconds = tmp_path, "hear", hearing.adaptor, 1, 1.0
        return run, hearing, optimizer

    run, plain, optimizer = begin("")
    frames = torch.randn(2, 20, 8)
    plain.loss(plain.adaptor(frames), [4, 4], [[4], [9]]).backward()
    optimizer.step()
    run.save(optimizer, plain)
    run, larger, optimizer = begin("(1,16,2,24)")
    run.resume(optimizer, larger)
    assert larger.adaptor(frames).allclose(plain.adaptor(frames), atol=1e-6)
    larger.loss(larger.adaptor(frames), [4, 4], [[4], [9]]).backward()
    optimizer.step()
    assert larger.adaptor.layers[0].mlp.down_proj.weight.any()


def test_saved_deltas_load_again(llm, tmp_path):
    """The phase that answers starts from what the phase that reads has learnt."""
    deltas = stage1.add_deltas(llm, rank=3)
    for delta in deltas.values():
        torch.nn.init.normal_(delta.lora_b)
    stage1.save_deltas(deltas, tmp_path / "read.safetensors", torch.float32)
    saved = [parameter.detach().clone() for parameter in stage1.low_rank(deltas)]
    for parameter in stage1.low_rank(deltas):
        torch.nn.init.zeros_(parameter)
    stage1.load_deltas(deltas, tmp_path / "read.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(stage1.low_rank(deltas), saved, strict=True))


def test_a_shard_gives_back_what_was_written(tmp_path):
    """Examples, voices and frames survive the file, in order."""
    frames = [torch.randn(5 * n, 8).half() for n in (3, 1)]
    spoken = [
        speech.Spoken(
            Example(f"Question {i}?", "Answer.", "factual", "group", ("Yes.",), "fact"),
            f"So, question {i}?",
            "hibari",
            each,
        )
        for i, each in enumerate(frames)
    ]
    speech.write_shard(tmp_path / "hibari-0000.safetensors", spoken)
    back = speech.read_all(tmp_path)
    assert [(each.example, each.text) for each in back] == [(each.example, each.text) for each in spoken]
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(back, spoken, strict=True))


def test_a_stopped_run_goes_on_with_the_first_missing_shard(tmp_path, monkeypatch):
    """Existing shards are left as they are, missing ones are made as they would have been."""
    monkeypatch.setattr(speech, "SHARD", 2)
    monkeypatch.setattr(speech, "encode", lambda encoder, samples: torch.tensor(samples[:40]).reshape(5, 8).half())
    chosen = [Example(f"Question {i}?", "Answer.", "factual", "group") for i in range(5)]

    def voice(text, draw):
        return draw.standard_normal(2000).astype(np.float32)

    speech.write_shards(tmp_path, None, chosen, "hibari", 0, voice)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(whole) == [f"hibari-000{i}.safetensors" for i in range(3)]
    (tmp_path / "hibari-0001.safetensors").unlink()
    (tmp_path / "hibari-0000.safetensors").write_bytes(b"kept")
    speech.write_shards(tmp_path, None, chosen, "hibari", 0, voice)
    assert (tmp_path / "hibari-0000.safetensors").read_bytes() == b"kept"
    assert (tmp_path / "hibari-0001.safetensors").read_bytes() == whole["hibari-0001.safetensors"]


def test_batches_draw_kinds_evenly_by_group(tmp_path):
    """An intent of a hundred phrasings is not drawn a hundred times as often as one of a single phrasing."""
    many = [
        speech.Spoken(Example(f"Hi {i}", "Hello!", "chitchat", "many"), "Hi", "v", torch.zeros(5, 8))
        for i in range(100)
    ]
    one = [speech.Spoken(Example("Bye", "Goodbye.", "chitchat", "one"), "Bye", "v", torch.zeros(5, 8))]
    rest = [
        speech.Spoken(Example("What?", "That.", kind, kind), "What?", "v", torch.zeros(5, 8))
        for kind in ("factual", "everyday")
    ]
    speech.write_shard(tmp_path / "a.safetensors", many + one + rest)
    corpus = stage1.Corpus(tmp_path, seed=0)
    drawn = [example for _ in range(20) for example, _ in corpus.draw_to_answer(20, spoken_share=1.0)]
    share = sum(each.group == "one" for each in drawn) / sum(each.group in ("one", "many") for each in drawn)
    assert 0.04 < share < 0.2  # by number 0.01, by group 0.5, by the root of the number 0.09


def test_an_exported_adaptor_hands_on_the_tokens_it_hears(tmp_path):
    """Through the file that ships: what comes out are the embeddings of what phase `hear` hears, then silence."""
    from omni.train.stage2 import load_adaptor

    torch.manual_seed(0)
    embeddings = torch.randn(20, 64)
    hearing = stage1.Hearing(stage1.new_adaptor(64, 384, 1, ""), embeddings, token_ids=[4, 9, 13])
    torch.nn.init.normal_(hearing.adaptor.linear2.weight)
    run = stage1.Run.__new__(stage1.Run)
    run.folder, run.adaptor, run.tokens = tmp_path, hearing.adaptor, lambda text: [17]
    stage1.export_tokens(run, hearing)
    frames = torch.randn(1, 100, 384)
    exported = load_adaptor(tmp_path / "export/adaptor.safetensors", embeddings)(frames)[0]
    best = hearing(frames)[0][0].argmax(-1).unique_consecutive()
    heard = [hearing.token_ids[i] for i in best.tolist() if i < 3]
    assert heard
    assert exported.equal(embeddings[[*heard, *[17] * (20 - len(heard))]])
