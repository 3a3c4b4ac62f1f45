"""Counts: a Poisson distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from .._checks import require_shape
from .exposure import log_exposure, require_position
from .observation import Observation, network_output
from .output_bias import mean_log_rate, observed_data, set_output_bias

__all__ = ["PoissonLikelihood"]


class PoissonLikelihood(nn.Module):
    r"""Independent Poisson elements, for counts.

    .. math:: p(x \mid z) = \prod_i \frac{\lambda_i^{x_i} e^{-\lambda_i}}{x_i!}, \qquad
        \log \lambda = \mathrm{network}(z) + \log e

    Args:
        network: any module that maps ``(*, D)`` to ``(*, *E)``, the log-rates.
        exposure: position, among what is given with the data, of the exposures :math:`e`, floats above 0 of shape
            ``(B,)``, ``(B, 1)`` or ``(B, *E)``: the time, area or total count that a count belongs to. None: all are 1,
            whatever is given.
        event_shape: ``E``, the shape of one datum, for instance ``(1, 28, 28)``; None means a vector, as long as the
            network's output.

    Returns:
        ``forward(z, *given)`` returns a distribution of batch shape ``*`` and event shape ``E``.

    Raises:
        ValueError: ``event_shape`` is not a sequence of positive integers, or not the shape of the network's output;
            exposures that are missing, not above 0 or of another shape; (from ``log_prob``) data that are not counts.
        TypeError: data, latent variables or exposures that are not floats of the parameters' dtype.

    Example:
        >>> import torch
        >>> likelihood = PoissonLikelihood(nn.Linear(2, 3), exposure=0)
        >>> likelihood(torch.zeros(5, 2), torch.full((5,), 7.0)).log_prob(torch.ones(5, 3)).shape
        torch.Size([5])

    Source:
        McCullagh and Nelder (1989), Generalized linear models, section 6.2 (exposures as offsets).
    """

    def __init__(
        self, network: nn.Module, *, exposure: int | None = None, event_shape: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.exposure = require_position(exposure)
        self.event_shape = require_shape("event_shape", event_shape)

    def forward(self, z: Tensor, *given: Any) -> Observation:
        """Return p(x|z); of ``given`` the exposures are used."""
        (log_rate,) = network_output(self.network, z, self.event_shape)
        offset = log_exposure(self.exposure, given, log_rate, self.event_shape)
        return Observation(
            dist.Poisson((log_rate if offset is None else log_rate + offset).exp()),
            self.event_shape,
            ("counts 0, 1, 2, ... for PoissonLikelihood", "Round it, or use GaussianLikelihood."),
            log_rate.dtype,
        )

    def initialize_output_bias(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> None:
        """Set the network's output bias to the log-rate of ``x`` ``(N, *E)``, the log of counts over exposures."""
        x = observed_data(x, mask, low=0.0)
        set_output_bias(self.network, mean_log_rate(x, log_exposure(self.exposure, given, x, self.event_shape)))
