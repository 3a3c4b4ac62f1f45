"""What the likelihoods of real data share: a location from the network and a scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .._checks import require_shape
from .observation import Observation, network_output
from .output_bias import mean_over_data, observed_data, set_output_bias, variance_over_data
from .positive_parameter import PositiveParameter

__all__ = ["LocationScale"]


class LocationScale(nn.Module):
    """Independent real elements with a location and a scale; the family is that of a subclass.

    A subclass defines ``family(loc, scale)``, a distribution over the elements, and ``unit_deviation``, its standard
    deviation at scale 1.
    """

    unit_deviation = 1.0

    def __init__(
        self,
        network: nn.Module,
        *,
        scale: float | str = "shared",
        event_shape: Sequence[int] | None = None,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__()
        self.network = network
        self.event_shape = require_shape("event_shape", event_shape)
        self.scale = PositiveParameter("scale", scale, network, self.event_shape, min_scale)
        if self.event_shape is None and scale == "per-dimension":
            self.event_shape = tuple(self.scale.raw.shape)

    def family(self, loc: Tensor, scale: Tensor | float) -> Any:
        """Return the distribution of the elements."""
        raise NotImplementedError

    def forward(self, z: Tensor, *given: Any) -> Observation:
        """Return p(x|z); ``given`` is not used."""
        loc, *predicted = network_output(self.network, z, self.event_shape, 1 + self.scale.outputs)
        return Observation(
            self.family(loc, self.scale(predicted)),
            self.event_shape,
            (f"finite values for {type(self).__name__}", "Remove or impute values that are missing."),
            loc.dtype,
        )

    def initialize_output_bias(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> None:
        """Set the network's output bias to the mean of ``x`` ``(N, *E)``, and a learned scale to its deviation."""
        x = observed_data(x, mask)
        mean, deviation = mean_over_data(x), variance_over_data(x).sqrt() / self.unit_deviation
        set_output_bias(self.network, mean, *self.scale.output_bias(deviation))
        self.scale.initialize(deviation, shared=deviation.square().mean().sqrt())
