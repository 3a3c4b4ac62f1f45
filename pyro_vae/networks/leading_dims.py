"""Any number of leading dimensions for a network that takes one."""

from __future__ import annotations

from torch import Tensor, nn

from .._checks import require_positive_int

__all__ = ["AnyLeadingDims"]


class AnyLeadingDims(nn.Module):
    """A network that takes exactly one batch dimension, as convolutions do, made to take any number of them.

    A decoder needs this: with K particles its input has shape ``(K, B, D)``.

    Args:
        network: maps ``(N, *I)`` to ``(N, *O)``.
        event_dim: number of dimensions of one input, ``len(I)``: 1 for vectors, 3 for images ``(C, H, W)``.

    Returns:
        ``forward(input)`` maps ``(*, *I)`` to ``(*, *O)``.

    Raises:
        ValueError: the input has fewer than ``event_dim`` dimensions.

    Example:
        >>> import torch
        >>> decoder = nn.Sequential(nn.Linear(2, 32), nn.Unflatten(1, (2, 4, 4)), nn.Conv2d(2, 1, 1))
        >>> AnyLeadingDims(decoder, event_dim=1)(torch.zeros(7, 5, 2)).shape
        torch.Size([7, 5, 1, 4, 4])
    """

    def __init__(self, network: nn.Module, event_dim: int) -> None:
        super().__init__()
        self.network = network
        self.event_dim = require_positive_int("event_dim", event_dim)

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(*, *I)`` to ``(*, *O)``."""
        leading = input.ndim - self.event_dim
        if leading < 0:
            raise ValueError(
                f"input: expected at least {self.event_dim} dimensions, those of one datum, got {tuple(input.shape)}."
            )
        output = self.network(input.reshape(-1, *input.shape[leading:]))
        return output.reshape(*input.shape[:leading], *output.shape[1:])
