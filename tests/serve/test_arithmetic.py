"""The served default follows the processor; a dtype that is named is taken."""

import pytest
import torch

from omni.serve import arithmetic


@pytest.mark.parametrize(("avx512", "amx", "wanted"), [(1, 0, "bfloat16"), (0, 1, "bfloat16"), (0, 0, "float32")])
def test_auto_is_bfloat16_where_the_processor_multiplies_it(monkeypatch, avx512, amx, wanted):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx512))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx))
    assert arithmetic.dtype("auto", "cpu") is getattr(torch, wanted)
    assert arithmetic.dtype("auto", "cuda") is torch.bfloat16
    assert arithmetic.dtype("float16", "cpu") is torch.float16
