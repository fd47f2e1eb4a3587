"""The trainers of the published shape, at small size: profile, learning, several processes, a kill survived."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from omni import cli
from omni.audio import wav
from omni.model.prompt import SPEECH, Prompt
from omni.model.tiny import byte_tokenizer
from omni.train import batches, large
from omni.train.batches import Batch, ManifestBatches, RandomBatches
from omni.train.manifest import ManifestError
from omni.train.shapes import SHAPES

SMALL = SHAPES["small"]
CPU = torch.device("cpu")


def run(monkeypatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["omni", "train", *words])
    return cli.main(["train", *words])


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_profile_measures_both_inputs(stage, tmp_path, monkeypatch, capsys):
    argv = (stage, "--shape", "small", "--profile", "--steps", "2", "--batch", "2", "--json", str(tmp_path / "p.json"))
    assert run(monkeypatch, *argv) == 0
    rows = json.loads((tmp_path / "p.json").read_text())["rows"]
    assert [row["input"] for row in rows] == ["padded", "true-length"]
    assert all(row["utilisation"] > 0 and row["peak_memory_gb"] > 0 and row["peak_tflops"] > 0 for row in rows)
    for row in rows:
        assert row["hours"] == pytest.approx(600_000 / row["samples_per_second"] / 3600)
        assert row["samples_per_second"] == pytest.approx(2 / row["seconds_per_step"])
    assert "| of the measured peak |" in capsys.readouterr().out


@pytest.mark.parametrize("trained", ["full", "lora"])
@pytest.mark.parametrize("optimiser", ["adamw", "adafactor"])
def test_stage_1_learns_one_batch(trained, optimiser):
    model = large.build("stage1", SMALL, CPU, torch.float32)
    large.choose_trained(model, trained, 4, checkpointing=True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser_ = large.optimiser_of(optimiser, parameters, 3e-3)
    batch = RandomBatches(SMALL, 2, padded=False, seconds=1.0, answer=5)(0)
    losses = [large.take_step(model, optimiser_, batch, CPU, 3e-3) for _ in range(25)]
    assert losses[-1] < losses[0] - (0.2 if optimiser == "adamw" else 0.0)


def test_stage_2_learns_one_batch_and_nothing_but_the_decoder():
    model = large.build("stage2", SMALL, CPU, torch.float32)
    large.choose_trained(model, "full", 4, checkpointing=False)
    before = model.thinker.adaptor.linear1.weight.clone()
    optimiser = large.optimiser_of("adamw", [p for p in model.parameters() if p.requires_grad], 3e-3)
    batch = RandomBatches(SMALL, 2, padded=False, seconds=1.0, answer=5, num_units=6)(0)
    losses = [large.take_step(model, optimiser, batch, CPU, 3e-3) for _ in range(25)]
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(before, model.thinker.adaptor.linear1.weight)


def test_a_padded_batch_gives_each_row_what_it_gets_alone():
    """Questions of different lengths in one batch: the states are those of each question by itself."""
    model = large.build("stage1", SMALL, CPU, torch.float32)
    draw = torch.Generator().manual_seed(1)
    features = torch.randn(2, 80, 60, generator=draw)
    prompt = [1, 2, SPEECH, 3]
    both = Batch(features, torch.tensor([60, 40]), [prompt, prompt], [[5, 6, 7], [8, 9]], [])
    states, lengths = model.states(both)
    assert lengths == [3, 2]
    alone, _ = model.states(Batch(features[1:, :, :40], torch.tensor([40]), [prompt], [[8, 9]], []))
    torch.testing.assert_close(states[3:], alone, rtol=1e-4, atol=1e-4)


def test_a_dialogue_is_prompted_as_serving_does(folder):
    """The prompt of a row with a history equals the one a worker builds from a session that went the same way."""
    from omni.serve.alignment import Alignment
    from omni.serve.conversation import Conversation, Item
    from omni.serve.thinking import _utterance
    from omni.serve.window import Window

    tokenizer = byte_tokenizer()
    session = Conversation(Window(positions=10_000, seconds=100.0, turns=9))
    audio = sorted(folder.glob("*.wav"))[:3]
    for path, answer in zip(audio, ("Hello 0", "Hello 1", None), strict=True):
        session.add(Item.speech(wav.to_pcm16(wav.read(path))))
        if answer is not None:
            ids = tuple(tokenizer(answer, add_special_tokens=False).input_ids)
            item = session.begin_answer()
            ends = tuple(range(1, len(ids) + 1))
            session.end_answer(item.id, Alignment(ids, answer, ends, (), num_samples=0, whole=True))
    served = [_utterance(message) for message in session.messages()]

    line = {"id": "d", "audio": audio[2].name, "instruction": "And?", "response": "Bye", "units": [1]}
    line["history"] = [{"audio": audio[i].name, "response": f"Hello {i}"} for i in (0, 1)]
    (folder / "d.jsonl").write_text(json.dumps(line))
    rows, _ = batches.read_rows(folder / "d.jsonl", 100, need_units=True)
    batch = ManifestBatches(rows, tokenizer, SMALL, 1, False, 0)(0)
    assert batch.prompts == [Prompt("chatml", tokenizer)(served)]
    assert batch.prompts[0].count(SPEECH) == 3 == len(batch.mel)
    samples = [each.speech for each in served if each.speech is not None]
    assert batch.lengths.tolist() == [10 * -(-len(each) // 1600) for each in samples]


def test_a_dialogues_states_are_those_of_its_questions_each_heard_alone():
    """Three questions and two rows in one batch: each prompt gets its own questions, in order."""
    model = large.build("stage1", SMALL, CPU, torch.float32)
    features = torch.randn(3, 80, 60, generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([60, 40, 50])
    prompts = [[1, SPEECH, 4, 7, 7, 2, SPEECH, 3], [1, SPEECH, 3]]
    batch = Batch(features, lengths, prompts, [[5, 6, 7], [8, 9]], [])
    assert batch.num_positions == (6 + 4 + 5) + (6 + 2) + (2 + 1)
    states, _ = model.states(batch)
    heard = [
        model.adaptor(model.encoder(features[i : i + 1, :, :length], lengths[i : i + 1]))[0]
        for i, length in enumerate(lengths.tolist())
    ]
    embed = model.llm.model.embed_tokens
    whole = torch.cat([embed(torch.tensor([1])), heard[0], embed(torch.tensor([4, 7, 7, 2])), heard[1],
                       embed(torch.tensor([3, 5, 6]))])  # fmt: skip
    alone = model.llm.model(inputs_embeds=whole[None]).last_hidden_state[0, -3:]
    torch.testing.assert_close(states[:3], alone, rtol=1e-4, atol=1e-4)
    other = torch.cat([embed(torch.tensor([1])), heard[2], embed(torch.tensor([3, 8]))])
    alone = model.llm.model(inputs_embeds=other[None]).last_hidden_state[0, -2:]
    torch.testing.assert_close(states[3:], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("history", "problem"),
    [
        ("earlier", "history is no list"),
        ([{"audio": "0.wav"}], "response is missing"),
        ([{"audio": "none.wav", "response": "Hi"}], "none.wav is not there"),
    ],
    ids=["text", "no answer", "no file"],
)
def test_a_history_that_cannot_be_used_is_named(folder, history, problem):
    line = {"id": "d", "audio": "1.wav", "instruction": "And?", "response": "Bye", "history": history}
    (folder / "d.jsonl").write_text(json.dumps(line))
    with pytest.raises(ManifestError, match=f"line 1: .*{problem}"):
        batches.read_rows(folder / "d.jsonl", 100, need_units=False)


@pytest.fixture
def folder(tmp_path):
    """Ten spoken rows, a small LLM and a small Whisper."""
    draw = np.random.default_rng(0)
    lines = []
    for i in range(10):
        wav.write(tmp_path / f"{i}.wav", draw.standard_normal(4_000 + 1_000 * i).astype(np.float32) * 0.1)
        row = {"id": str(i), "audio": f"{i}.wav", "instruction": "Hi", "response": f"Hello {i}", "units": [i, 50, i]}
        lines.append(json.dumps(row))
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    model = large.build("stage1", SMALL, CPU, torch.float32)
    model.llm.save_pretrained(tmp_path / "llm")
    byte_tokenizer().save_pretrained(tmp_path / "llm")
    shape = SMALL.encoder
    dims = {"n_mels": shape.num_mels, "n_audio_ctx": shape.num_positions, "n_audio_state": shape.width,
            "n_audio_head": shape.num_heads, "n_audio_layer": shape.num_layers}  # fmt: skip
    state = {f"encoder.{name}": x for name, x in model.encoder.state_dict().items()}
    torch.save({"dims": dims, "model_state_dict": state}, tmp_path / "whisper.pt")
    return tmp_path


def arguments(folder, stage: str, output: str, *more: str) -> list[str]:
    return [stage, "--shape", "small", "--manifest", str(folder / "m.jsonl"), "--llm", str(folder / "llm"),
            "--whisper", str(folder / "whisper.pt"), "--output", str(folder / output), "--batch", "2", "--dtype",
            "float32", "--optimiser", "adamw", *more]  # fmt: skip


def test_an_epoch_takes_every_row_once_and_a_step_decides_its_rows(folder):
    rows, _ = batches.read_rows(folder / "m.jsonl", 100, need_units=True)
    made = [ManifestBatches(rows, byte_tokenizer(), SMALL, 2, False, 0, rank, 2) for rank in (0, 1)]
    seen = [number for step in range(made[0].steps_per_epoch) for each in made for number in each.numbers(step)]
    assert set(seen) == set(range(10)) and len(seen) <= 11
    assert made[0].numbers(1) == ManifestBatches(rows, byte_tokenizer(), SMALL, 2, False, 0, 0, 2).numbers(1)
    batch = made[0](0)
    assert batch.mel.shape[0] == 2 and all(answer[-1] == 258 for answer in batch.answers)


def test_units_out_of_range_are_named(folder):
    with pytest.raises(ManifestError, match=r"line 1: units\[1\] is 50"):
        batches.read_rows(folder / "m.jsonl", 40, need_units=True)


def test_a_run_that_goes_on_ends_as_if_undisturbed(folder, monkeypatch):
    """Two epochs of both stages; stage 1 stops in between (its last checkpoint is that of step 4) and goes on."""
    whole = arguments(folder, "stage1", "whole", "--epochs", "2")
    assert run(monkeypatch, *whole) == 0
    parts = arguments(folder, "stage1", "parts", "--epochs", "2", "--save-every", "4")
    taken, steps = large.take_step, iter(range(6))

    def dies(*args):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return taken(*args)

    monkeypatch.setattr(large, "take_step", dies)
    assert run(monkeypatch, *parts) == 130
    monkeypatch.setattr(large, "take_step", taken)
    assert run(monkeypatch, *parts) == 0
    a, b = (load_file(folder / name / "trained.safetensors") for name in ("whole", "parts"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    lines = (folder / "parts" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == [str(i) for i in range(1, 11)]
    assert run(monkeypatch, *arguments(folder, "stage2", "units", "--epochs", "1")) == 0
    assert all(name.startswith("decoder.") for name in load_file(folder / "units" / "trained.safetensors"))


def test_two_processes_share_the_weights(folder):
    """FSDP over gloo: the run ends, and its checkpoint holds whole weights under the names that one process writes."""
    argv = arguments(folder, "stage1", "two", "--steps", "2")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "omni.cli"]
    done = subprocess.run(
        [*command, "train", *argv],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = load_file(folder / "two" / "trained.safetensors")
    assert found["llm.lm_head.weight"].shape == (259, 64)
    assert not any(name.startswith("encoder.") for name in found)


def test_what_training_needs_is_asked_for(monkeypatch, capsys):
    assert run(monkeypatch, "stage1", "--shape", "small", "--output", "x") == 2
    assert "needs --manifest, --llm, --whisper" in capsys.readouterr().err
