"""Floating-point precision: networks may run in half precision, densities never do."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """``x``, widened where autocast made it half precision: log-densities are computed and summed in float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
