"""The binary data of the tests."""

from __future__ import annotations

import torch
from torch import Tensor


def binary_data(n: int = 64) -> Tensor:
    """Return ``n`` copies of two patterns with some noise, ``(n, 6)``, always the same ones."""
    generator = torch.Generator().manual_seed(1)
    patterns = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]).float()
    x = patterns[torch.randint(2, (n,), generator=generator)]
    flips = torch.rand(x.shape, generator=generator) < 0.1
    return torch.where(flips, 1 - x, x)
