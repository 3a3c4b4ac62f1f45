"""Proportions: a beta distribution on the open interval (0, 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from .._checks import require_shape
from .observation import Observation, network_output
from .output_bias import mean_over_data, observed_data, set_output_bias, variance_over_data
from .positive_parameter import PositiveParameter

__all__ = ["BetaLikelihood"]


class BetaLikelihood(nn.Module):
    r"""Independent beta elements, for proportions in (0, 1).

    .. math:: p(x \mid z) = \prod_i \mathrm{Beta}(x_i \mid m_i \kappa_i, (1 - m_i) \kappa_i), \qquad
        \operatorname{logit} m(z) = \mathrm{network}(z)

    with mean :math:`m` and variance :math:`m (1 - m) / (1 + \kappa)`.

    Args:
        network: any module that maps ``(*, D)`` to ``(*, *E)``, the logits of the means; with
            ``concentration="predicted"`` twice as many along the first dimension of ``E``: the logits, then the
            concentrations before softplus.
        concentration: :math:`\kappa`: a number (fixed), ``"shared"`` (one learned number), ``"per-dimension"`` (a
            learned number for each element of ``E``) or ``"predicted"`` (from ``z``, by the network).
        event_shape: ``E``, the shape of one datum; None means a vector, as long as the network's output.
        min_concentration: lower bound of a learned concentration.

    Returns:
        ``forward(z, *given)`` returns a distribution of batch shape ``*`` and event shape ``E``.

    Raises:
        ValueError: an unknown or non-positive ``concentration``; ``event_shape`` is not a sequence of positive
            integers, or not the shape of the network's output; (from ``log_prob``) data outside (0, 1): at 0 and 1
            the density may be infinite.
        TypeError: data or latent variables that are not floats of the parameters' dtype.

    Example:
        >>> import torch
        >>> likelihood = BetaLikelihood(nn.Linear(2, 3))
        >>> likelihood(torch.zeros(5, 2)).log_prob(torch.full((5, 3), 0.4)).shape
        torch.Size([5])

    Source:
        Ferrari and Cribari-Neto (2004), Beta regression for modelling rates and proportions, equation 4.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        concentration: float | str = "shared",
        event_shape: Sequence[int] | None = None,
        min_concentration: float = 1e-2,
    ) -> None:
        super().__init__()
        self.network = network
        self.event_shape = require_shape("event_shape", event_shape)
        self.concentration = PositiveParameter(
            "concentration", concentration, network, self.event_shape, min_concentration
        )
        if self.event_shape is None and concentration == "per-dimension":
            self.event_shape = tuple(self.concentration.raw.shape)

    def forward(self, z: Tensor, *given: Any) -> Observation:
        """Return p(x|z); ``given`` is not used."""
        logits, *predicted = network_output(self.network, z, self.event_shape, 1 + self.concentration.outputs)
        concentration = self.concentration(predicted)
        return Observation(
            dist.Beta(logits.sigmoid() * concentration, (-logits).sigmoid() * concentration),
            self.event_shape,
            (
                "values in (0, 1), 0 and 1 excluded, for BetaLikelihood",
                "Rescale it, or use ContinuousBernoulliLikelihood.",
            ),
            logits.dtype,
            check=_inside,
        )

    def initialize_output_bias(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> None:
        """Set the network's output bias and a learned concentration to the mean and variance of ``x`` ``(N, *E)``."""
        x = observed_data(x, mask, low=0.0, high=1.0)
        mean = mean_over_data(x).clamp(1e-3, 1 - 1e-3)
        variance = variance_over_data(x).clamp(min=1e-6)
        values = (mean * (1 - mean) / variance - 1).clamp(0.1, 1e3)
        set_output_bias(self.network, mean.logit(), *self.concentration.output_bias(values))
        self.concentration.initialize(values, shared=values.median())


def _inside(x: Tensor) -> Tensor:
    return (x > 0) & (x < 1)
