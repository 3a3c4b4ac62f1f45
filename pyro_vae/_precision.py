"""Floating-point precision: networks may run in half precision, log-densities are computed in at least float32."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` as float32 where autocast made it float16 or bfloat16, and otherwise as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
