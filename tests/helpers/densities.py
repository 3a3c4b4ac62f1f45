"""Densities against quadrature and enumeration, and against their own samples."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any
from unittest import mock

import scipy.stats
import torch
from pyro.distributions.testing import gof
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.constraints import MixtureSameFamilyConstraint


def total_mass(p: Any, points: int = 20_001, points_of_two: int = 1001) -> float:
    """Return the integral, or the sum, of the density of one or two elements; ``p`` has batch shape ``()``.

    Real, positive and bounded elements are mapped from the real line, where a grid of sinh(t) reaches far tails.
    """
    support = _element_support(p)
    if support.is_discrete:
        return p.log_prob(_all_values(support, p.event_shape)).double().exp().sum().item()
    dims = p.event_shape.numel()
    bijection = biject_to(support)
    t = torch.linspace(-20, 20, points, dtype=torch.float64)
    if dims == 2:
        t = torch.linspace(-6, 6, points_of_two, dtype=torch.float64)
    line = torch.sinh(t)
    if support is not constraints.real:
        line = t * 2  # the bijection itself reaches both ends
    elements = bijection(line)
    slope = bijection.log_abs_det_jacobian(line, elements)
    slope = slope + (torch.cosh(t).log() if support is constraints.real else torch.full_like(t, 2.0).log())
    x = torch.cartesian_prod(*[elements] * dims).reshape(-1, *p.event_shape)
    slopes = torch.cartesian_prod(*[slope] * dims).reshape(len(x), -1).sum(-1)
    with torch.no_grad():
        density = (p.log_prob(x).double() + slopes).exp()
    return (density.sum() * (t[1] - t[0]) ** dims).item()


def fit_pvalue(p: Any, log_prob: Callable[[Tensor], Tensor] | None = None, n: int = 50_000) -> float:
    """Return the p-value of ``n`` samples of ``p`` under its density, or under another one."""
    # Pyro's chi^2 tail sums 100 terms of a series, which gives p-values near 1 where chi^2 is a few hundred.
    with mock.patch.object(gof, "chi2sf", scipy.stats.chi2.sf), torch.no_grad():
        return _fit_pvalue(p, log_prob or p.log_prob, n)


def _fit_pvalue(p: Any, log_prob: Callable[[Tensor], Tensor], n: int) -> float:
    x = p.sample((n,))
    support = _element_support(p)
    if not support.is_discrete:
        # On the real line, because the test by distances to neighbours knows no bounds.
        bijection = biject_to(support)
        t = bijection.inv(x)
        slope = bijection.log_abs_det_jacobian(t, x).reshape(n, -1).sum(-1)
        return float(gof.auto_goodness_of_fit(t.double(), (log_prob(x) + slope).double().exp()))
    values = _all_values(support, p.event_shape).to(x.dtype)
    probs = log_prob(values).double().exp()
    values, probs = values[probs > 20 / n], probs[probs > 20 / n]  # chi^2 needs counts that are not small
    counts = torch.stack([(x == value).flatten(1).all(1).sum() for value in values])
    return float(gof.multinomial_goodness_of_fit(probs, counts, total_count=n))


def _element_support(p: Any) -> Any:
    support = p.support
    while isinstance(support, (constraints.independent, MixtureSameFamilyConstraint)):
        support = support.base_constraint
    return support


def _all_values(support: Any, event_shape: torch.Size) -> Tensor:
    """Return every value of a discrete datum; counts up to 300."""
    if support is constraints.boolean:
        elements = [0.0, 1.0]
    else:
        levels = getattr(support, "num_levels", None)  # of a discretized logistic distribution, in [0, 1]
        if levels is not None:
            elements = [k / (levels - 1) for k in range(levels)]
            values = list(itertools.product(elements, repeat=event_shape.numel()))
            return torch.tensor(values, dtype=torch.float64).reshape(-1, *event_shape)
        lower, upper = getattr(support, "lower_bound", 0), getattr(support, "upper_bound", 300)
        elements = [float(value) for value in range(int(lower), int(upper) + 1)]
    values = list(itertools.product(elements, repeat=event_shape.numel()))
    return torch.tensor(values, dtype=torch.float64).reshape(-1, *event_shape)
