"""Counts with more zeros than a negative binomial distribution has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import require_shape
from .exposure import log_exposure, require_position
from .observation import Observation, network_output
from .output_bias import mean_log_rate, observed_data, set_output_bias, share_of_data
from .positive_parameter import PositiveParameter

__all__ = ["ZeroInflatedNegativeBinomialLikelihood"]


class ZeroInflatedNegativeBinomialLikelihood(nn.Module):
    r"""Independent elements that are 0 with a probability of their own, and else negative binomial.

    .. math:: p(x \mid z) = \prod_i \left( g_i \, [x_i = 0] + (1 - g_i) \, \mathrm{NB}(x_i \mid \mu_i, r_i) \right),
        \qquad (\log \mu - \log e, \operatorname{logit} g) = \mathrm{network}(z)

    with NB, its mean :math:`\mu`, concentration :math:`r` and exposure :math:`e` as in ``NegativeBinomialLikelihood``.

    Args:
        network: any module that maps ``(*, D)`` to twice as many elements as a datum has, along the first dimension of
            ``E``: the log-means of the negative binomial, then the logits of g; with ``concentration="predicted"``
            thrice as many: at last the concentrations before softplus.
        concentration: as in ``NegativeBinomialLikelihood``.
        exposure: position, among what is given with the data, of the exposures :math:`e`; see ``PoissonLikelihood``.
        event_shape: ``E``, the shape of one datum; None means a vector, half (a third) as long as the network's output.
        min_concentration: lower bound of a learned concentration.

    Returns:
        ``forward(z, *given)`` returns a distribution of batch shape ``*`` and event shape ``E``.

    Raises:
        ValueError: an unknown or non-positive ``concentration``; otherwise as ``PoissonLikelihood``.
        TypeError: as ``PoissonLikelihood``.

    Example:
        >>> likelihood = ZeroInflatedNegativeBinomialLikelihood(nn.Linear(2, 2 * 3))
        >>> likelihood(torch.zeros(5, 2)).log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])

    Source:
        Lopez et al. (2018), Deep generative modeling for single-cell transcriptomics, equation 1.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        concentration: float | str = "shared",
        exposure: int | None = None,
        event_shape: Sequence[int] | None = None,
        min_concentration: float = 1e-3,
    ) -> None:
        super().__init__()
        if concentration == "per-dimension" and event_shape is None:
            raise ValueError(
                'event_shape: expected the shape of one datum for concentration="per-dimension", got None. Give '
                "event_shape=(...)."
            )
        self.network = network
        self.exposure = require_position(exposure)
        self.event_shape = require_shape("event_shape", event_shape)
        self.concentration = PositiveParameter(
            "concentration", concentration, network, self.event_shape, min_concentration
        )

    def forward(self, z: Tensor, *given: Any) -> Observation:
        """Return p(x|z); of ``given`` the exposures are used."""
        log_mean, gate_logits, *predicted = network_output(
            self.network, z, self.event_shape, 2 + self.concentration.outputs
        )
        offset = log_exposure(self.exposure, given, log_mean, self.event_shape)
        concentration = torch.as_tensor(self.concentration(predicted), dtype=log_mean.dtype, device=log_mean.device)
        log_mean = log_mean if offset is None else log_mean + offset
        return Observation(
            _ZeroInflated(concentration, logits=log_mean - concentration.log(), gate_logits=gate_logits),
            self.event_shape,
            ("counts 0, 1, 2, ... for ZeroInflatedNegativeBinomialLikelihood", "Round it, or use GaussianLikelihood."),
            log_mean.dtype,
        )

    def initialize_output_bias(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> None:
        """Set the network's output bias to half of the zeros in ``x`` ``(N, *E)`` being inflated, and to its mean."""
        x = observed_data(x, mask, low=0.0)
        log_mean = mean_log_rate(x, log_exposure(self.exposure, given, x, self.event_shape))
        gate = (share_of_data(x, 0.0) / 2).clamp(0.01, 0.95)
        set_output_bias(
            self.network,
            log_mean - (-gate).log1p(),  # E[x] = (1 - g) mu
            gate.logit(),
            *self.concentration.output_bias(torch.ones_like(log_mean)),
        )


class _ZeroInflated(dist.ZeroInflatedNegativeBinomial):
    """Pyro's distribution, always by the gate's logits: Pyro's ``log_prob`` changes once a sample was drawn, and its
    ``expand`` fails.
    """

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> _ZeroInflated:
        """Return the distribution with this batch shape."""
        base, shape = self.base_dist, torch.Size(batch_shape)
        return _ZeroInflated(
            base.total_count.expand(shape),
            logits=base.logits.expand(shape),
            gate_logits=self.gate_logits.expand(shape),
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of counts."""
        if self._validate_args:
            self._validate_sample(value)
        log_count = self.base_dist.log_prob(value) - F.softplus(self.gate_logits)
        return torch.where(value == 0, torch.logaddexp(log_count, -F.softplus(-self.gate_logits)), log_count)
