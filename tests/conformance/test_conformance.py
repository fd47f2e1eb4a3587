"""`omni conformance`: the golden fixtures hold, other kinds of folders are read, and a wrong array is found."""

import json
import shutil
from pathlib import Path

import numpy as np
import other_folder
import pytest
from other_folder import GOLDEN

from omni import cli, conformance
from omni.conformance.report import FAILED, NOT_CHECKED, PASSED, Report


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("other") / "fixtures"
    other_folder.write(root)
    return root


def copy(root: Path, to: Path, *parts: str) -> Path:
    """A folder with some of another's parts; weights and recordings are linked, since nothing changes them."""
    to.mkdir(exist_ok=True)
    for part in ("audio", "checkpoint"):
        if (root / part).is_dir():
            (to / part).symlink_to((root / part).resolve())
    for part in parts:
        (to / part).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (root / part).is_dir() else shutil.copy)(root / part, to / part)
    return to


def perturb(path: Path, key: str, by: float = 0.01) -> None:
    """Change the last number of one array."""
    with np.load(path) as file:
        arrays = {name: file[name].copy() for name in file.files}
    if arrays[key].dtype.kind == "U":
        arrays[key] = np.array("0" * 64)
    else:
        flat = arrays[key].reshape(-1)
        flat[-1] += by if flat.dtype.kind == "f" else 1
    np.savez(path, **arrays)


def failures(report: Report) -> set[str]:
    return {row.file for row in report.rows if row.result == FAILED}


def test_this_build_agrees_with_the_published_programs(capsys, tmp_path):
    """The command passes on our fixtures, looks at every array, and leaves its rows as JSON."""
    assert cli.main(["conformance", str(GOLDEN), "--json", str(tmp_path / "rows.json")]) == 0
    content = json.loads((tmp_path / "rows.json").read_text())
    assert content["counts"] == {PASSED: len(content["rows"]), FAILED: 0, NOT_CHECKED: 0}
    files = {path.relative_to(GOLDEN).as_posix() for path in GOLDEN.glob("*/*.npz")}
    assert files <= {row["file"] for row in content["rows"]}
    assert capsys.readouterr().out.endswith(f"{len(content['rows'])} passed, 0 failed, 0 not checked\n")


def test_other_folders_are_checked(other):
    """More than 30 s of audio, two utterances in a prompt, another shape of vocoder, sampling, a long unit decoder."""
    report = conformance.run(other)
    assert failures(report) == set()
    assert report.count(NOT_CHECKED) == 0
    seen = {row.file for row in report.rows}
    assert {path.relative_to(other).as_posix() for path in other.glob("*/*.npz")} <= seen


CHANGES = [
    ("frontend/utt0_mel.npz", "mel_frames"),
    ("frontend/utt0_mel.npz", "mel_full"),
    ("frontend/utt1_mel.npz", "audio_sha256_f32"),
    ("frontend/special_mel.npz", "over30_frames"),
    ("frontend/special_mel.npz", "empty_stats"),
    ("llm/utt0.npz", "enc_block_tail"),
    ("llm/utt0.npz", "enc_out"),
    ("llm/utt0.npz", "inputs_embeds"),
    ("llm/utt0.npz", "prefill_last_layers"),
    ("llm/utt0.npz", "lm_logits"),
    ("llm/utt0.npz", "ctc_hidden"),
    ("llm/utt0.npz", "ctc_top5_val"),
    ("llm/utt0.npz", "stream_event_value"),
    ("llm/utt0.npz", "units_after_token"),
    ("llm/utt0.npz", "units"),
    ("edge/text_only.npz", "text_inputs_embeds"),
    ("edge/one_token.npz", "output_ids"),
    ("edge/eos_override_utt1.npz", "ctc_argmax"),
    ("edge/padded_batch.npz", "left_position_ids"),
    ("edge/padded_batch.npz", "right_embeds_row_norm"),
    ("edge/ctc_train_loss.npz", "loss"),
    ("edge/rope.npz", "gen_inv_freq"),
    ("vocoder/tiny.npz", "weights_sha256"),
    ("vocoder/tiny.npz", "A_nodur_up2_first4"),
    ("vocoder/tiny.npz", "B_durations"),
    ("vocoder/tiny.npz", "single_dur_wav"),
    ("vocoder/tiny.npz", "C_chunk40_wav"),
]


@pytest.mark.parametrize(("file", "key"), CHANGES, ids=lambda value: value.removesuffix(".npz"))
def test_one_wrong_number_is_found(file, key, tmp_path, capsys):
    """A single changed number in any array fails the check of that file, and the command."""
    parts = [file, "prompts.json"]
    if file.startswith("vocoder"):
        parts = [file, "vocoder/tiny"]
    root = copy(GOLDEN, tmp_path / "changed", *parts)
    perturb(root / file, key)
    assert cli.main(["conformance", str(root), "--quiet"]) == 1
    out = capsys.readouterr().out
    assert file in out and FAILED in out


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("edge/two_turns_two_speech.npz", "inputs_embeds"),
        ("edge/unit_decoder_long.npz", "ctc_top3_val"),
        ("edge/sampling.npz", "t07_p095_probs"),
        ("edge/sampling.npz", "t06_none_ids"),
        ("vocoder/small.npz", "A_dur_wav"),
        ("llm/utt0.npz", "inputs_embeds"),
    ],
    ids=lambda value: value.removesuffix(".npz"),
)
def test_one_wrong_number_in_another_folder_is_found(other, file, key, tmp_path):
    """The same for the files that only other folders hold."""
    parts = [path.relative_to(other).as_posix() for path in (other / "vocoder").glob("*.json")]
    root = copy(other, tmp_path / "changed", file, *(parts if file.startswith("vocoder") else []))
    perturb(root / file, key)
    assert failures(conformance.run(root)) == {file}


def test_a_wrong_resampling_is_found(tmp_path):
    """Half as loud is no agreement, although resamplers may differ a little."""
    root = copy(GOLDEN, tmp_path / "changed", "frontend/utt0_22050_loaded.npz")
    path = root / "frontend/utt0_22050_loaded.npz"
    with np.load(path) as file:
        np.savez(path, audio_i16=file["audio_i16"] // 2)
    wrong = {row.check for row in conformance.run(root).rows if row.result == FAILED}
    assert wrong == {"relative RMS error of our resampler", "samples by ffmpeg"}


def test_a_wrong_prompt_is_found(tmp_path):
    """prompts.json is compared id by id."""
    root = copy(GOLDEN, tmp_path / "changed", "prompts.json")
    content = json.loads((root / "prompts.json").read_text())
    content["cases"][3]["input_ids"][5] += 1
    (root / "prompts.json").write_text(json.dumps(content))
    report = conformance.run(root)
    assert {row.check.split(":")[0] for row in report.rows if row.result == FAILED} == {content["cases"][3]["name"]}


def test_a_wrong_chunk_is_found(tmp_path):
    """The published page's chunks are compared with what our units would have given."""
    root = copy(GOLDEN, tmp_path / "changed", "edge/gradio_chunking.json", "llm/utt0.npz")
    content = json.loads((root / "edge/gradio_chunking.json").read_text())
    content["cases"]["utt0/after_token/chunk20"]["vocoder_chunks"][0][0] += 1
    (root / "edge/gradio_chunking.json").write_text(json.dumps(content))
    wrong = [row.check for row in conformance.run(root).rows if row.result == FAILED]
    assert wrong == ["utt0/after_token/chunk20: chunks and calls"]


def test_an_unknown_array_is_not_passed_over(tmp_path):
    """What no check knows is listed as not checked."""
    root = copy(GOLDEN, tmp_path / "changed", "edge/rope.npz")
    with np.load(root / "edge/rope.npz") as file:
        np.savez(root / "edge/rope.npz", **{name: file[name] for name in file.files}, surprise=np.zeros(1))
    rows = [row for row in conformance.run(root).rows if row.result == NOT_CHECKED]
    assert len(rows) == 1 and "surprise" in rows[0].note


def test_nan_is_no_agreement(tmp_path):
    """A difference that is not a number fails."""
    root = copy(GOLDEN, tmp_path / "changed", "edge/rope.npz")
    perturb(root / "edge/rope.npz", "lm_inv_freq", by=float("nan"))
    assert failures(conformance.run(root)) == {"edge/rope.npz"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is not a folder"),
        ({}, "holds no fixtures"),
        ({"llm/utt0.npz": b"nothing of the kind"}, "cannot be read as .npz"),
        ({"prompts.json": b"{"}, "is not JSON"),
        ({"prompts.json": b'{"cases": [{"name": "x", "messages": [[0, ""], [1, null]]}]}'}, "need a checkpoint"),
    ],
    ids=["no folder", "empty folder", "broken npz", "broken json", "no checkpoint"],
)
def test_a_wrong_folder_is_told_in_words(content, words, tmp_path, capsys):
    """No traceback and no silent success: exit status 2 and the reason."""
    root = tmp_path / "folder"
    if content is not None:
        root.mkdir()
        for name, data in content.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(data)
    assert cli.main(["conformance", str(root)]) == 2
    assert words in capsys.readouterr().err
