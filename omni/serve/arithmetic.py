"""What a worker computes with: the setting "auto" → a dtype of this machine. torch is imported here.

bfloat16 halves the bytes a step reads, and on a processor with AVX512_BF16 or AMX also its time; the mini checkpoint
then chooses nearly always the token that float32 chooses (`omni bench agreement`). Other processors only imitate it.
"""

import torch


def dtype(setting: str, device: str) -> torch.dtype:
    if setting != "auto":
        return getattr(torch, setting)
    fast = device != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32
