"""A positive parameter of a likelihood, such as a scale: fixed, learned, or given by the network."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import require_positive_number, require_shape

__all__ = ["PositiveParameter"]


class PositiveParameter(nn.Module):
    r"""A positive number for each element of a datum.

    A learned one is :math:`\min + \operatorname{softplus}(s)`. Without the lower bound the density of data that the
    decoder fits exactly (constant pixels) could grow to infinity.

    Args:
        name: the likelihood's argument, for errors.
        value: a number (fixed), ``"shared"`` (one learned number), ``"per-dimension"`` (a learned number for each
            element) or ``"predicted"`` (from z, by the network).
        network: the likelihood's network; the shape of ``"per-dimension"`` is its ``out_features`` where
            ``event_shape`` is None.
        event_shape: the shape of one datum, or None.
        minimum: the lower bound.

    Attributes:
        outputs: how many numbers per element the network gives for it, 0 or 1.
    """

    def __init__(
        self, name: str, value: Any, network: nn.Module, event_shape: Sequence[int] | None, minimum: float
    ) -> None:
        super().__init__()
        self.minimum = require_positive_number(f"min_{name}", minimum)
        self.outputs = int(isinstance(value, str) and value == "predicted")
        self.fixed: float | None = None
        self.shared = isinstance(value, str) and value == "shared"
        if self.shared:
            self.raw = nn.Parameter(self.inverse(torch.ones(())))
        elif isinstance(value, str) and value == "per-dimension":
            if event_shape is None and not hasattr(network, "out_features"):
                raise ValueError(
                    f'event_shape: expected the shape of one datum for {name}="per-dimension", got None, and the '
                    "network has no out_features to take it from. Give event_shape=(...)."
                )
            shape = event_shape or require_shape("network.out_features", (network.out_features,)) or ()
            self.raw = nn.Parameter(self.inverse(torch.ones(*shape)))
        elif not isinstance(value, str):
            number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
            if not self.minimum <= number < math.inf:
                raise ValueError(
                    f"{name}: expected a finite number of at least min_{name}={self.minimum:g}, or a word for a "
                    f"learned one, got {value!r}. Take a larger {name}, a smaller min_{name}, or 'per-dimension'."
                )
            self.fixed = number
        elif value != "predicted":
            raise ValueError(f'{name}: expected a number, "shared", "per-dimension" or "predicted", got {value!r}.')

    def forward(self, predicted: Sequence[Tensor]) -> Tensor | float:
        """Return the parameter; ``predicted`` holds the network's tensor where the network gives it."""
        if self.fixed is not None:
            return self.fixed
        return self.minimum + F.softplus(predicted[0] if self.outputs else self.raw)

    def inverse(self, value: Tensor) -> Tensor:
        """Return the s of which this is the parameter; values too close to the minimum count as twice that."""
        excess = (value - self.minimum).clamp(min=self.minimum)
        return excess + (-(-excess).expm1()).log()

    def output_bias(self, values: Tensor) -> list[Tensor]:
        """Return the biases with which the network predicts ``values`` ``E``; none where it predicts nothing."""
        return [self.inverse(values)] if self.outputs else []

    def initialize(self, values: Tensor, shared: Tensor) -> None:
        """Set a learned parameter: to ``values`` ``E``, or to the one number ``shared``."""
        if self.fixed is None and not self.outputs:
            with torch.no_grad():
                self.raw.copy_(self.inverse(shared if self.shared else values))
