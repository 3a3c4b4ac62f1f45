"""The second half of a step, for any optimizer: update the parameters unless a loss or a gradient is not finite."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pyro.optim import PyroOptim
from torch import Tensor

from .optim import FusedOptim

__all__ = ["all_finite", "step_or_skip"]


def step_or_skip(optim: PyroOptim, params: Iterable[Tensor], finite: bool) -> None:
    """Take an optimizer step if ``finite``; else only move the learning-rate scheduler on, which counts all steps."""
    if finite:
        optim(set(params))
    elif isinstance(optim, FusedOptim):
        optim.step_scheduler()


def all_finite(losses: list[Tensor], grads: list[Tensor]) -> Tensor:
    """Return whether every loss and every gradient is finite, as one 0-dim tensor."""
    parts = [loss.detach().abs() for loss in losses] or [torch.zeros(())]
    parts += [g.abs().sum() for g in grads]  # a sum of magnitudes is finite just where all of them are
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return torch.isfinite(total)
