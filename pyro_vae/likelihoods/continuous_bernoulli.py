r"""Grey values in [0, 1]: the continuous Bernoulli in its natural parameter, exact at every logit.

With :math:`\eta = \operatorname{logit} \lambda` the density of Loaiza-Ganem and Cunningham (2019) is
:math:`p(x) = \eta e^{\eta x} / (e^\eta - 1)` on [0, 1]. ``torch.distributions.ContinuousBernoulli`` computes its
normalising constant from :math:`\lambda` clamped to float precision: beyond :math:`|\eta| \approx 16`, where dark
pixels end in training, that density no longer integrates to one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions.kl import register_kl

from .._checks import require_positive_number, require_shape
from .observation import Observation, network_output
from .output_bias import mean_over_data, observed_data, set_output_bias

__all__ = ["ContinuousBernoulliLikelihood"]

# For |logit| below this the closed forms lose digits in float32, and a Taylor series is exact to rounding. The cdf and
# its inverse lose fewer digits, so that theirs is smaller.
_SMALL = 0.1
_TINY = 1e-3


class ContinuousBernoulliLikelihood(nn.Module):
    r"""Independent continuous Bernoulli elements, for grey values in [0, 1]; normalised, unlike a Bernoulli on greys.

    .. math:: p(x \mid z) = \prod_i C(\lambda_i(z)) \, \lambda_i(z)^{x_i} (1 - \lambda_i(z))^{1 - x_i}, \qquad
        \operatorname{logit} \lambda(z) = L \tanh(\mathrm{network}(z) / L), \quad
        C(\lambda) = \frac{2 \tanh^{-1}(1 - 2 \lambda)}{1 - 2 \lambda}

    The bound L keeps the density of constant elements (pixels that are always black) finite: the density at 0 is about
    :math:`-\operatorname{logit} \lambda`, and so at most L.

    Args:
        network: any module that maps ``(*, D)`` to ``(*, *E)``, the logits of :math:`\lambda` where L is large.
        event_shape: ``E``, the shape of one datum, for instance ``(1, 28, 28)``; None means a vector, as long as the
            network's output.
        max_logit: L; ``math.inf`` for no bound.

    Returns:
        ``forward(z, *given)`` returns a distribution of batch shape ``*`` and event shape ``E``; its ``log_prob`` is a
        density, in nats per datum with respect to data in [0, 1], and so can be above 0.

    Raises:
        ValueError: ``max_logit`` is not positive; ``event_shape`` is not a sequence of positive integers, or not the
            shape of the network's output; (from ``log_prob``) data outside [0, 1], or of another event shape.
        TypeError: data or latent variables that are not floats of the parameters' dtype.

    Example:
        >>> likelihood = ContinuousBernoulliLikelihood(nn.Linear(2, 784))
        >>> likelihood(torch.zeros(2)).log_prob(torch.full((784,), 0.5)).shape
        torch.Size([])

    Source:
        Loaiza-Ganem and Cunningham (2019), The continuous Bernoulli: fixing a pervasive error in variational
        autoencoders, equations 6 to 8.
    """

    def __init__(
        self, network: nn.Module, *, event_shape: Sequence[int] | None = None, max_logit: float = 30.0
    ) -> None:
        super().__init__()
        self.network = network
        self.event_shape = require_shape("event_shape", event_shape)
        self.max_logit = require_positive_number("max_logit", max_logit, finite=False)

    def forward(self, z: Tensor, *given: Any) -> Observation:
        """Return p(x|z); ``given`` is not used."""
        (logits,) = network_output(self.network, z, self.event_shape)
        if self.max_logit < math.inf:
            logits = self.max_logit * torch.tanh(logits / self.max_logit)
        return Observation(
            ContinuousBernoulli(logits=logits),
            self.event_shape,
            (
                "values in [0, 1] for ContinuousBernoulliLikelihood",
                "Rescale it (8-bit pixels: x / 255) or use GaussianLikelihood.",
            ),
            logits.dtype,
        )

    def initialize_output_bias(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> None:
        """Set the network's output bias so that E[x|z] starts at the mean of ``x`` ``(N, *E)``.

        The logit is found by bisection, since the mean rises with it. Elements that are constant have no finite logit;
        theirs is 0.9 L, or 100 where there is no bound.
        """
        mean = mean_over_data(observed_data(x, mask, low=0.0, high=1.0)).double()
        limit = min(0.9 * self.max_logit, 100.0)
        low, high = torch.full_like(mean, -limit), torch.full_like(mean, limit)
        for _ in range(50):
            middle = (low + high) / 2
            below = ContinuousBernoulli(logits=middle).mean < mean
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        logits = (low + high) / 2
        if self.max_logit < math.inf:
            logits = self.max_logit * torch.atanh(logits / self.max_logit)
        set_output_bias(self.network, logits)


class ContinuousBernoulli(dist.ContinuousBernoulli):
    r"""The continuous Bernoulli of Pyro, exact at every logit. Pass ``logits``, not ``probs``."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> ContinuousBernoulli:
        return ContinuousBernoulli(logits=self.logits.expand(batch_shape), validate_args=self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.logits * value - self._log_normalizer()

    def _log_normalizer(self) -> Tensor:
        """Return log((exp(eta) - 1) / eta). The series is in eta, not in |eta|: so its gradient is right at 0."""
        eta, a = self.logits, self.logits.abs()
        b = _away_from_zero(a)
        series = eta / 2 + eta**2 / 24 - eta**4 / 2880
        return torch.where(a < _SMALL, series, eta.relu() + (-torch.expm1(-b) / b).log())

    def entropy(self) -> Tensor:
        return self._log_normalizer() - self.logits * self.mean

    @property
    def mean(self) -> Tensor:
        eta, a = self.logits, self.logits.abs()
        b = _away_from_zero(a)
        of_positive = -1 / torch.expm1(-b) - 1 / b
        large = torch.where(eta < 0, 1 - of_positive, of_positive)
        return torch.where(a < _SMALL, 0.5 + eta / 12 - eta**3 / 720, large)

    @property
    def variance(self) -> Tensor:
        a = self.logits.abs()
        b = _away_from_zero(a)
        return torch.where(a < _SMALL, 1 / 12 - a**2 / 240 + a**4 / 6048, 1 / b**2 - 1 / (4 * (b / 2).sinh() ** 2))

    def icdf(self, value: Tensor) -> Tensor:
        # By symmetry only logits below 0 are inverted, where log1p and expm1 keep every digit.
        positive = self.logits > 0
        u = torch.where(positive, 1 - value, value)
        a = self.logits.abs()
        b = _away_from_zero(a, _TINY)
        x = torch.where(a < _TINY, u - a * u * (1 - u) / 2, -torch.log1p(u * torch.expm1(-b)) / b)
        return torch.where(positive, 1 - x, x)

    def cdf(self, value: Tensor) -> Tensor:
        positive = self.logits > 0
        x = torch.where(positive, 1 - value, value).clamp(0, 1)
        a = self.logits.abs()
        b = _away_from_zero(a, _TINY)
        mass = torch.where(a < _TINY, x + a * x * (1 - x) / 2, torch.expm1(-b * x) / torch.expm1(-b))
        return torch.where(positive, 1 - mass, mass)


@register_kl(ContinuousBernoulli, ContinuousBernoulli)
def _kl(p: ContinuousBernoulli, q: ContinuousBernoulli) -> Tensor:
    return (p.logits - q.logits) * p.mean - p._log_normalizer() + q._log_normalizer()


def _away_from_zero(a: Tensor, small: float = _SMALL) -> Tensor:
    """Return ``a``, with 1 in place of small values, so that the branch which ``torch.where`` drops stays finite.

    An infinite branch would make the gradient NaN, though it is dropped.
    """
    return torch.where(a < small, torch.ones_like(a), a)
