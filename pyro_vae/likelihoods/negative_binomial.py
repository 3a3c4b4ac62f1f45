"""Counts that vary more than Poisson's: a negative binomial distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .._checks import require_shape
from .exposure import log_exposure, require_position
from .observation import Observation, network_output
from .output_bias import mean_log_rate, mean_over_data, observed_data, set_output_bias, variance_over_data
from .positive_parameter import PositiveParameter

__all__ = ["NegativeBinomialLikelihood"]


class NegativeBinomialLikelihood(nn.Module):
    r"""Independent negative binomial elements, for counts whose variance is above their mean.

    .. math:: p(x \mid z) = \prod_i \frac{\Gamma(x_i + r_i)}{x_i!\, \Gamma(r_i)}
        \left(\frac{r_i}{r_i + \mu_i}\right)^{r_i} \left(\frac{\mu_i}{r_i + \mu_i}\right)^{x_i}, \qquad
        \log \mu = \mathrm{network}(z) + \log e

    with mean :math:`\mu` and variance :math:`\mu + \mu^2 / r`.

    Args:
        network: any module that maps ``(*, D)`` to ``(*, *E)``, the log-means; with ``concentration="predicted"`` twice
            as many along the first dimension of ``E``: the log-means, then the concentrations before softplus.
        concentration: :math:`r`: a number (fixed), ``"shared"`` (one learned number), ``"per-dimension"`` (a learned
            number for each element of ``E``) or ``"predicted"`` (from ``z``, by the network).
        exposure: position, among what is given with the data, of the exposures :math:`e`; see ``PoissonLikelihood``.
        event_shape: ``E``, the shape of one datum; None means a vector, as long as the network's output.
        min_concentration: lower bound of a learned concentration.

    Returns:
        ``forward(z, *given)`` returns a distribution of batch shape ``*`` and event shape ``E``.

    Raises:
        ValueError: an unknown or non-positive ``concentration``; otherwise as ``PoissonLikelihood``.
        TypeError: as ``PoissonLikelihood``.

    Example:
        >>> likelihood = NegativeBinomialLikelihood(nn.Linear(2, 3), concentration="per-dimension")
        >>> likelihood(torch.zeros(5, 2)).log_prob(torch.ones(5, 3)).shape
        torch.Size([5])

    Source:
        Cameron and Trivedi (2013), Regression analysis of count data, section 3.3 (NB2); for single cells, Lopez et al.
        (2018), Deep generative modeling for single-cell transcriptomics.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        concentration: float | str = "per-dimension",
        exposure: int | None = None,
        event_shape: Sequence[int] | None = None,
        min_concentration: float = 1e-3,
    ) -> None:
        super().__init__()
        self.network = network
        self.exposure = require_position(exposure)
        self.event_shape = require_shape("event_shape", event_shape)
        self.concentration = PositiveParameter(
            "concentration", concentration, network, self.event_shape, min_concentration
        )
        if self.event_shape is None and concentration == "per-dimension":
            self.event_shape = tuple(self.concentration.raw.shape)

    def forward(self, z: Tensor, *given: Any) -> Observation:
        """Return p(x|z); of ``given`` the exposures are used."""
        log_mean, *predicted = network_output(self.network, z, self.event_shape, 1 + self.concentration.outputs)
        offset = log_exposure(self.exposure, given, log_mean, self.event_shape)
        concentration = torch.as_tensor(self.concentration(predicted), dtype=log_mean.dtype, device=log_mean.device)
        log_mean = log_mean if offset is None else log_mean + offset
        return Observation(
            dist.NegativeBinomial(concentration, logits=log_mean - concentration.log()),
            self.event_shape,
            ("counts 0, 1, 2, ... for NegativeBinomialLikelihood", "Round it, or use GaussianLikelihood."),
            log_mean.dtype,
        )

    def initialize_output_bias(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> None:
        """Set the network's output bias to the log-mean of ``x`` ``(N, *E)``, and r so that the variance is that of x.

        The variance is matched for exposures of 1.
        """
        x = observed_data(x, mask, low=0.0)
        bias = mean_log_rate(x, log_exposure(self.exposure, given, x, self.event_shape))
        mean, variance = mean_over_data(x), variance_over_data(x)
        values = (mean.square() / (variance - mean).clamp(min=1e-2 * mean.square() + 1e-6)).clamp(0.01, 100.0)
        set_output_bias(self.network, bias, *self.concentration.output_bias(values))
        self.concentration.initialize(values, shared=values.median())
