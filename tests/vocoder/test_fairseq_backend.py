"""fairseq's CodeHiFiGANVocoder and ours give the same sound. Skipped without fairseq (`make fairseq`)."""

import json
import subprocess
import sys

import numpy as np
import pytest
import seeded
import torch

from omni.audio.wav import to_pcm16
from omni.vocoder import checkpoint, fairseq_backend
from omni.vocoder.render import offline, render
from omni.vocoder.streaming import Chunk, ChunkPlanner, ChunkReply


@pytest.fixture
def fairseq() -> None:
    try:
        fairseq_backend.import_vocoder_module()
    except fairseq_backend.FairseqMissing as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="module")
def full_directory(tmp_path_factory):
    """The published shape with random weights, in the published layout."""
    directory = tmp_path_factory.mktemp("vocoder")
    (directory / "config.json").write_text(json.dumps(seeded.FULL_CONFIG))
    torch.save({"generator": seeded.weights(seeded.vocoder("full", 4242), 4242)}, directory / "g_00500000")
    return directory


def test_the_golden_checkpoint_sounds_as_recorded(fairseq):
    vocoder = fairseq_backend.load(seeded.GOLDEN / "tiny")
    golden = np.load(seeded.GOLDEN / "tiny.npz")
    for case in "ABC":
        np.testing.assert_allclose(offline(vocoder, golden[f"{case}_units"]), golden[f"{case}_dur_wav"], atol=1e-5)


def test_the_published_shape_sounds_the_same_with_both(fairseq, full_directory):
    theirs, ours = fairseq_backend.load(full_directory), checkpoint.load(full_directory)
    units = np.random.default_rng(5).integers(0, 1000, 30)
    (reference,), (reply,) = (render(vocoder, [Chunk.whole(units.tolist())]) for vocoder in (theirs, ours))
    assert isinstance(reference, ChunkReply)
    assert isinstance(reply, ChunkReply)
    assert reply.durations == reference.durations
    np.testing.assert_allclose(offline(ours, units), offline(theirs, units), atol=1e-5)


def test_fairseq_streams_what_it_vocodes_offline(fairseq):
    vocoder = fairseq_backend.load(seeded.GOLDEN / "tiny")
    units = np.load(seeded.GOLDEN / "tiny.npz")["C_units"].tolist()
    plan, pcm = ChunkPlanner(21, first_chunk=5, chunk=20), b""
    plan.push(units)
    plan.finish()
    while chunk := plan.next():
        (reply,) = render(vocoder, [chunk])
        assert isinstance(reply, ChunkReply)
        plan.accept(reply)
        pcm += reply.pcm
    expected = np.frombuffer(to_pcm16(offline(vocoder, units)), "<i2")
    np.testing.assert_allclose(np.frombuffer(pcm, "<i2"), expected, rtol=0, atol=1)


def test_a_batch_is_vocoded_row_by_row(fairseq):
    vocoder = fairseq_backend.load(seeded.GOLDEN / "tiny")
    chunks = [Chunk.whole(range(n)) for n in (1, 9, 4)]
    assert render(vocoder, chunks) == [render(vocoder, [chunk])[0] for chunk in chunks]


def test_half_precision_leaves_the_durations_alone(fairseq):
    exact = fairseq_backend.load(seeded.GOLDEN / "tiny")
    rough = fairseq_backend.load(seeded.GOLDEN / "tiny", dtype=torch.bfloat16)
    (full,), (half,) = (render(vocoder, [Chunk.whole(range(40))]) for vocoder in (exact, rough))
    assert isinstance(full, ChunkReply)
    assert isinstance(half, ChunkReply)
    assert half.durations == full.durations
    assert half.pcm != full.pcm


def test_importing_fairseq_leaves_no_trace_in_the_process(fairseq):
    """fairseq sets up the root logger when imported, and the import bends dataclasses for Python 3.11."""
    program = f"""
import dataclasses, logging, sys
from omni.vocoder import fairseq_backend
before = dataclasses._process_class, list(logging.root.handlers), logging.root.level, logging.root.manager.disable
fairseq_backend.load({str(seeded.GOLDEN / "tiny")!r})
assert "fairseq" in sys.modules and "torchaudio" not in sys.modules
assert before == (
    dataclasses._process_class, list(logging.root.handlers), logging.root.level, logging.root.manager.disable
)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_fairseq_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "fairseq.models.text_to_speech.vocoder", None)
    with pytest.raises(fairseq_backend.FairseqMissing, match="make fairseq"):
        fairseq_backend.load(seeded.GOLDEN / "tiny")


def test_a_folder_without_weights_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(seeded.FULL_CONFIG))
    with pytest.raises(FileNotFoundError, match="holds no vocoder checkpoint"):
        fairseq_backend.load(tmp_path)
