"""Where products in bfloat16 are faster than in float32."""

from __future__ import annotations

import torch

from qcompiler.targets.host import host

__all__ = ["computes_bfloat16"]


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 at more than the rate of float32.

    Of CPUs those with AMX do, and AMD's with AVX512-BF16. Intel's cores have one unit for
    ``vdpbf16ps`` where they have two for float32: without AMX it takes 1.7 to 1.9 times as long as
    float32 there (measured on Emerald Rapids, 1,024 rows, 576 and 1536 channels).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if getattr(torch.cpu, "_is_amx_tile_supported", bool)():  # not in every torch
        return True
    has_vectors = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return bool(has_vectors) and "intel" not in host().model.lower()
