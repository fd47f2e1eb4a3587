"""The encoder is Whisper's; short input and ragged batches give each row what it gets alone."""

import pytest
import torch
import whisper

from omni.model.config import EncoderConfig
from omni.model.encoder import Encoder
from omni.model.tiny import ENCODER_DIMS


@pytest.fixture(scope="module")
def pair() -> tuple[Encoder, whisper.model.AudioEncoder]:
    """Ours and openai-whisper's with the same random weights."""
    torch.manual_seed(0)
    theirs = whisper.model.AudioEncoder(n_mels=80, n_ctx=1500, n_state=64, n_head=2, n_layer=2).eval()
    ours = Encoder(EncoderConfig(num_mels=80, num_positions=1500, width=64, num_heads=2, num_layers=2)).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@torch.inference_mode()
def test_thirty_seconds_are_encoded_as_whisper_does(pair):
    ours, theirs = pair
    features = torch.randn(1, 80, 3000)
    torch.testing.assert_close(ours(features), theirs(features), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_ragged_batch_gives_each_row_what_it_gets_alone(pair):
    """Lengths odd and even, down to one frame; what lies in the padding makes no difference."""
    ours, _ = pair
    lengths = [200, 1, 77, 150, 199]
    features = torch.randn(len(lengths), 80, 200)
    together = ours(features, torch.tensor(lengths))
    for row, length, own in zip(features, lengths, together, strict=True):
        alone = ours(row[None, :, :length])[0]
        torch.testing.assert_close(own[: len(alone)], alone, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_without_lengths_padding_is_heard(pair):
    """As published: silence up to 30 s is part of the input. So lengths must do something."""
    ours, _ = pair
    features = torch.randn(1, 80, 100)
    padded = torch.nn.functional.pad(features, (0, 100))
    assert not torch.allclose(ours(padded)[:, :50], ours(features), atol=1e-3)
    assert torch.allclose(ours(padded, torch.tensor([100]))[:, :50], ours(features), atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 128, 3000), (1, 80, 3001)], ids=["128 mel bins", "30.01 s"])
def test_wrong_features_are_refused_with_both_shapes(shape):
    with pytest.raises(ValueError, match=r"need \(B, 80, F\) with F up to 3000"):
        Encoder(ENCODER_DIMS)(torch.zeros(shape))
