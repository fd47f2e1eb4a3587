"""CodeHiFiGAN against fairseq's recorded outputs, and a ragged batch against each row alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from omni.vocoder import checkpoint
from omni.vocoder.code_hifigan import CodeHiFiGAN
from omni.vocoder.hifigan import VocoderConfigError

GOLDEN = Path(__file__).parents[1] / "golden" / "vocoder"
TINY = GOLDEN / "tiny"


@pytest.fixture(scope="module")
def vocoder() -> CodeHiFiGAN:
    return checkpoint.load(TINY)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "tiny.npz"))


@pytest.mark.parametrize("case", ["A", "B", "C", "single"])
def test_waveform_and_durations_are_those_of_fairseq(vocoder, golden, case):
    units = torch.from_numpy(golden[f"{case}_units"])[None]
    durations = vocoder.durations(units)
    assert durations[0].tolist() == golden[f"{case}_durations"].tolist()
    np.testing.assert_allclose(vocoder(units, durations)[0], golden[f"{case}_dur_wav"], atol=1e-5)
    one_frame_each = vocoder(units, torch.ones_like(units))[0]
    np.testing.assert_allclose(one_frame_each, golden[f"{case}_nodur_wav"], atol=1e-5)


def test_negative_codes_are_dropped_as_published(vocoder, golden):
    samples = vocoder.speak(golden["with_invalid_units"].tolist())
    np.testing.assert_allclose(samples, golden["with_invalid_dur_wav"], atol=1e-5)


def test_a_row_of_a_ragged_batch_is_what_it_is_alone(vocoder):
    rows = [torch.randint(100, (n,), generator=torch.Generator().manual_seed(n)) for n in (1, 7, 30, 64)]
    lengths = torch.tensor([len(row) for row in rows])
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=5)
    durations = vocoder.durations(batch, lengths)
    samples = vocoder(batch, durations, lengths)
    for row, duration, sound in zip(rows, durations, samples, strict=True):
        alone = vocoder.durations(row[None])
        assert duration[: len(row)].tolist() == alone[0].tolist()
        assert not duration[len(row) :].any()
        expected = vocoder(row[None], alone)[0]
        torch.testing.assert_close(sound[: len(expected)], expected, atol=1e-6, rtol=0)
        assert not sound[len(expected) :].any()


def test_no_units_make_no_sound(vocoder):
    assert vocoder.speak([]).shape == (0,)
    nothing_and_one = torch.zeros(2, 1, dtype=torch.long)
    lengths = torch.tensor([0, 1])
    durations = vocoder.durations(nothing_and_one, lengths)
    assert durations[0].tolist() == [0]
    assert not vocoder(nothing_and_one, durations, lengths)[0].any()


def test_a_unit_out_of_range_is_named(vocoder):
    with pytest.raises(ValueError, match=rf"0 … {vocoder.num_units - 1}; got 3 … {vocoder.num_units}"):
        vocoder.speak([3, vocoder.num_units])


def test_bfloat16_changes_the_samples_little_and_the_durations_not_at_all(vocoder):
    units = torch.arange(60)[None]
    rough = checkpoint.load(TINY, dtype=torch.bfloat16)
    durations = vocoder.durations(units)
    assert torch.equal(rough.durations(units), durations)
    exact, approximate = vocoder(units, durations), rough(units, durations)
    assert approximate.dtype == torch.float32
    assert 10 * torch.log10(exact.pow(2).mean() / (exact - approximate).pow(2).mean()) > 25  # dB


def test_saved_weights_load_as_the_same_vocoder(vocoder, tmp_path):
    checkpoint.save(vocoder, checkpoint.read_config(TINY), tmp_path)
    again = checkpoint.load(tmp_path)
    for name, weight in vocoder.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "change",
    [{"f0": True}, {"model_in_dim": 64}, {"dur_predictor_params": None}, {"upsample_kernel_sizes": [10, 8, 8, 4, 4]}],
    ids=["pitch input", "widths differ", "no durations", "odd kernel"],
)
def test_a_generator_that_does_not_exist_is_refused(change):
    with pytest.raises(VocoderConfigError):
        CodeHiFiGAN(checkpoint.read_config(TINY) | change)


def test_an_incomplete_directory_is_named(tmp_path):
    with pytest.raises(checkpoint.VocoderCheckpointError, match=r"config\.json"):
        checkpoint.load(tmp_path)
    (tmp_path / "config.json").write_text((TINY / "config.json").read_text())
    with pytest.raises(checkpoint.VocoderCheckpointError, match="g_"):
        checkpoint.load(tmp_path)
