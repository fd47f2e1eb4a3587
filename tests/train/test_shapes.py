"""What a sample costs: the published sizes, and the work of both stages by the paper's averages."""

import pytest
import torch

from omni.model import config
from omni.train import large
from omni.train.shapes import SHAPES, decoder_forward, encoder_forward, llm_forward, stage1_work, stage2_work

BIG = SHAPES["8b"]


def test_the_published_shape_has_the_published_sizes():
    """8,030,261,248 in the LLM, 21,501,952 in the adaptor, 425,649,129 in the unit decoder: counted, not allocated."""
    with torch.device("meta"):
        model = large.SpeechToUnits(BIG)

    def size(module):
        return sum(weight.numel() for weight in module.parameters())

    assert size(model.thinker.llm) == 8_030_261_248
    assert size(model.thinker.adaptor) == 21_501_952
    assert size(model.decoder) == 425_649_129
    assert config.parse(BIG.published()).upsample == 25


@pytest.mark.parametrize(
    ("found", "tera"),
    [
        (encoder_forward(BIG, 1500), 2.274),
        (llm_forward(BIG, 362), 5.09),
        (decoder_forward(BIG, 1) * 50, 0.0204 * 50),
    ],
    ids=["encoder, 30 s", "prefill of 362", "unit decoder, 50 tokens"],
)
def test_forward_passes_cost_what_others_counted(found, tera):
    assert found / 1e12 == pytest.approx(tera, rel=0.03)


def test_stages_cost_more_padded_and_less_with_what_is_frozen():
    padded, short = (stage1_work(BIG, frames, 62, 50) for frames in (1500, 375))
    assert padded.model / 1e12 == pytest.approx(2.27 + 18.4, rel=0.05)
    assert short.model < 0.5 * padded.model < padded.model < padded.hardware
    assert stage1_work(BIG, 375, 62, 50, "lora").model < 0.75 * short.model
    assert stage1_work(BIG, 375, 62, 50, checkpointing=False).hardware == short.model
    assert stage2_work(BIG, 375, 62, 50, cached=True).model < stage2_work(BIG, 375, 62, 50).model
