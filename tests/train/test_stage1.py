"""Stage 1: every phase learns, judges itself and goes on as if it had never been stopped."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_ear import NUM_MELS, encoder

from omni import cli
from omni.train import ear, metrics, speech, stage1
from omni.train import hearing as hear
from omni.train.base_llm import write_tiny
from omni.train.corpus import Corpus, Heldout
from omni.train.ear import Ear, new_adaptor
from omni.train.instructions import Example
from omni.train.scoring import Question


def test_an_adaptor_gets_blocks_later(tmp_path):
    """A phase goes on from a plain adaptor's state: what it has learnt stays, moments too, and blocks join."""
    torch.manual_seed(0)
    speech.write_shard(
        tmp_path / "a.safetensors", [speech.Spoken(Example("a", "", "h", "h"), "a", "v", torch.ones(10, 8))]
    )

    def begin(blocks):
        hearing = hear.Hearing(Ear(encoder(), new_adaptor(16, 8, 1, blocks)), torch.randn(20, 16), [4, 9])
        optimizer = torch.optim.AdamW(hearing.own_parameters(), lr=1e-3, fused=True)
        run = stage1.Run.__new__(stage1.Run)
        run.folder, run.phase, run.steps, run.seconds = tmp_path, "hear", 1, 1.0
        run.ear = Ear(hearing.encoder, hearing.adaptor)
        run.losses, run.corpus = [], Corpus(tmp_path / "speech", 0, 1)
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


KINDS = ("chitchat", "factual", "everyday")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Forty made-up utterances in two shards, a tiny LLM, three held-out questions."""
    draw = torch.Generator().manual_seed(0)

    def heard(text: str) -> torch.Tensor:
        return torch.randn(50 + 10 * len(text), NUM_MELS, generator=draw).half()

    (tmp_path / "speech").mkdir()
    for name, first in (("a", 0), ("b", 20)):
        some = [
            speech.Spoken(Example(f"Ask {i}", f"Say {i}", KINDS[i % 3], f"{i % 5}"), f"Ask {i}", "v", heard(f"Ask {i}"))
            for i in range(first, first + 20)
        ]
        speech.write_shard(tmp_path / "speech" / f"{name}.safetensors", some)
    write_tiny(tmp_path / "llm")
    asked = [Heldout(Question(f"{i}", Path("x"), f"Ask {i}", KINDS[i], ("Say",)), heard("Ask")) for i in range(3)]
    monkeypatch.setattr(stage1, "read_heldout", lambda manifest: asked)
    monkeypatch.setattr(ear, "whisper", encoder)
    return tmp_path


def run(monkeypatch, folder, output: str, phase: str, *more: str) -> int:
    """A phase in its own folder, with the fixture's speech and LLM."""
    (folder / output).mkdir(exist_ok=True)
    if not (folder / output / "llm").exists():
        (folder / output / "llm").symlink_to(folder / "llm")
        (folder / output / "classes.json").write_text(json.dumps(list(range(256))))  # bytes
    words = ["train", "stage1", "--output", str(folder / output), "--speech", str(folder / "speech"), "--phase", phase,
             "--rank", "2", "--adaptor-context", "0", "--look-every", "0", *more]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["omni", *words])
    return cli.main(words)


def test_every_phase_that_was_stopped_ends_as_an_undisturbed_one(folder, monkeypatch):
    """Two steps to a round of forty utterances: the stop falls between two rounds."""
    taken = stage1.Run.step
    for phase in ("hear", "read", "answer", "follow"):
        steps = ("--steps", "3")
        if phase == "follow":  # by an adaptor that hands on tokens
            for output in ("whole", "parts"):
                (folder / output / "stage1-hear.pt").rename(folder / output / "hear.pt")
                assert run(monkeypatch, folder, output, "hear", *steps, "--tokens") == 0
        assert run(monkeypatch, folder, "whole", phase, *steps) == 0
        left = iter(range(2))

        def dies(*args, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return taken(*args)

        monkeypatch.setattr(stage1.Run, "step", dies)
        assert run(monkeypatch, folder, "parts", phase, *steps) == 130
        state = folder / "parts" / f"stage1-{phase}.pt"
        assert torch.load(state, weights_only=True)["steps"] == 2
        monkeypatch.setattr(stage1.Run, "step", taken)
        assert run(monkeypatch, folder, "parts", phase, *steps) == 0
        whole, parts = (
            torch.load(folder / name / state.name, weights_only=True)["module"] for name in ("whole", "parts")
        )
        assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
        a, b = (metrics.read(folder / name / f"stage1-{phase}-metrics.csv") for name in ("whole", "parts"))
        assert [row["step"] for row in a] == [row["step"] for row in b]
        assert [row["loss"] for row in a] == [row["loss"] for row in b]
    whole, parts = (folder / name / "export" / "adaptor.safetensors" for name in ("whole", "parts"))
    assert all(torch.equal(x, load_file(parts)[name]) for name, x in load_file(whole).items())


def test_a_state_without_a_corpus_goes_on(folder, monkeypatch):
    """States written before a checkpoint held the corpus have neither it nor losses."""
    assert run(monkeypatch, folder, "out", "hear", "--steps", "2") == 0
    path = folder / "out" / "stage1-hear.pt"
    state = torch.load(path, weights_only=True)
    torch.save({name: x for name, x in state.items() if name not in ("corpus", "losses")}, path)
    assert run(monkeypatch, folder, "out", "hear", "--steps", "3") == 0
    assert torch.load(path, weights_only=True)["steps"] == 3


def test_a_shard_that_is_gone_is_named(folder, monkeypatch, capsys):
    assert run(monkeypatch, folder, "out", "hear", "--steps", "1") == 0
    (folder / "speech" / "a.safetensors").unlink()
    assert run(monkeypatch, folder, "out", "hear", "--steps", "2") == 2
    assert "a.safetensors is gone" in capsys.readouterr().err


def test_a_state_that_does_not_fit_is_named(folder, monkeypatch, capsys):
    assert run(monkeypatch, folder, "new", "hear", "--steps", "1", "--begin", str(folder / "gone.pt")) == 2
    assert "gone.pt does not exist" in capsys.readouterr().err
    assert run(monkeypatch, folder, "new", "hear", "--steps", "1") == 0
    assert run(monkeypatch, folder, "new", "hear", "--steps", "2", "--tune-encoder", "1") == 2
    assert "was begun with another --tune-encoder" in capsys.readouterr().err
