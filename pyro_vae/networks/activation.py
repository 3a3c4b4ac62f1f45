"""The activation between two layers."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

__all__ = ["make_activation"]


def make_activation(activation: Callable[[], nn.Module]) -> nn.Module:
    """Return a new activation module; refuse what does not return one."""
    try:
        made = activation()
    except TypeError:
        made = None
    if not isinstance(made, nn.Module):
        raise TypeError(
            f"activation: expected a function that returns a module, such as nn.SiLU, got {activation!r}. "
            "Give the class, or a function: lambda: nn.LeakyReLU(0.1)."
        )
    return made
