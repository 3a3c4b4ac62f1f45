"""Checks that hold for every part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def check_gradients(part: nn.Module, output: Tensor) -> None:
    """Assert that the gradient of ``output`` reaches every parameter of ``part``."""
    assert list(part.parameters())
    output.sum().backward()
    for name, parameter in part.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def check_state_dict(make: Callable[[], nn.Module], evaluate: Callable[[Any], Tensor], path: Path) -> None:
    """Assert that a part which loads the saved ``state_dict`` of another one gives the same values."""
    first, second = make(), make()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.normal_(std=0.5)
    values = evaluate(first)
    if list(first.parameters()):
        assert not torch.equal(values, evaluate(second))
    torch.save(first.state_dict(), path)
    second.load_state_dict(torch.load(path, weights_only=True))
    assert torch.equal(values, evaluate(second))
