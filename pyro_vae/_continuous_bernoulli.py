r"""The continuous Bernoulli in its natural parameter, exact at every logit.

With :math:`\eta = \operatorname{logit} \lambda` the density of Loaiza-Ganem and Cunningham (2019) is
:math:`p(x) = \eta e^{\eta x} / (e^\eta - 1)` on [0, 1]. ``torch.distributions.ContinuousBernoulli`` computes its
normalising constant from :math:`\lambda` clamped to float precision: beyond :math:`|\eta| \approx 16`, where dark
pixels end in training, that density no longer integrates to one.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.kl import register_kl

# Below it the closed forms cancel in float32 and a Taylor series is exact to rounding; (i)cdf have less to cancel.
_SMALL = 0.1
_TINY = 1e-3


def _away_from_zero(a: Tensor, small: float = _SMALL) -> Tensor:
    """Keeps the branch that ``torch.where`` does not choose, and so its gradient, finite."""
    return torch.where(a < small, torch.ones_like(a), a)


class ContinuousBernoulli(dist.ContinuousBernoulli):
    r"""Drop-in for Pyro's, to be made with ``logits=``."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> ContinuousBernoulli:
        return ContinuousBernoulli(logits=self.logits.expand(batch_shape), validate_args=self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.logits * value - self._log_normaliser()

    def _log_normaliser(self) -> Tensor:
        """log of (exp(eta) - 1) / eta; the series in eta itself, whose gradient is right at 0 too."""
        eta, a = self.logits, self.logits.abs()
        b = _away_from_zero(a)
        series = eta / 2 + eta**2 / 24 - eta**4 / 2880
        return torch.where(a < _SMALL, series, eta.relu() + (-torch.expm1(-b) / b).log())

    def entropy(self) -> Tensor:
        return self._log_normaliser() - self.logits * self.mean

    @property
    def mean(self) -> Tensor:
        eta, a = self.logits, self.logits.abs()
        b = _away_from_zero(a)
        of_size = -1 / torch.expm1(-b) - 1 / b
        return torch.where(a < _SMALL, 0.5 + eta / 12 - eta**3 / 720, torch.where(eta < 0, 1 - of_size, of_size))

    @property
    def variance(self) -> Tensor:
        a = self.logits.abs()
        b = _away_from_zero(a)
        return torch.where(a < _SMALL, 1 / 12 - a**2 / 240 + a**4 / 6048, 1 / b**2 - 1 / (4 * (b / 2).sinh() ** 2))

    def icdf(self, value: Tensor) -> Tensor:
        # By symmetry only logits of -a are inverted, where log1p and expm1 keep every digit.
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
    return (p.logits - q.logits) * p.mean - p._log_normaliser() + q._log_normaliser()
