"""The product of normal densities, of which some are left out for some of the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from .._checks import require_distribution

__all__ = ["product_of_experts"]


def product_of_experts(
    prior: Any, experts: Mapping[str, Any], observed: Mapping[str, Tensor | None] | None = None
) -> dist.Independent | dist.MultivariateNormal:
    r"""Return the normalized product of a normal prior and normal experts.

    .. math:: q(z) \propto p(z) \prod_m \mathcal{N}(z \mid \mu_m, \Lambda_m^{-1}), \qquad
        \Lambda = \Lambda_0 + \sum_m \Lambda_m, \quad \mu = \Lambda^{-1} \Bigl(\Lambda_0 \mu_0 + \sum_m \Lambda_m \mu_m
        \Bigr)

    If each expert is proportional to :math:`p(x_m \mid z)` as a function of z, this is the posterior of z given all
    :math:`x_m`, which are independent given z. The prior counts once, whatever the number of experts.

    Args:
        prior: p(z), of batch shape ``()`` or ``(B,)`` and event shape ``(D,)``.
        experts: normal distributions of batch shape ``(B,)`` and event shape ``(D,)``, by name.
        observed: for each expert which data it is multiplied for, ``(B,)``, or None: all. Neither the result nor its
            gradients depend on an expert where it is left out, as long as it is finite.

    Returns:
        A normal distribution with diagonal covariance if all factors are that, else one with full covariance; of event
        shape ``(D,)``.

    Raises:
        ValueError: a factor that is not normal, or an expert of another event shape than the prior's.

    Example:
        >>> half = dist.Normal(torch.ones(5, 2), 0.5**0.5).to_event(1)
        >>> q = product_of_experts(dist.Normal(torch.zeros(2), 1.0).to_event(1), {"a": half, "b": half})
        >>> q.mean[0], q.variance[0]
        (tensor([0.8000, 0.8000]), tensor([0.2000, 0.2000]))

    Source:
        Wu and Goodman (2018), Multimodal Generative Models for Scalable Weakly-Supervised Learning, section 2.2; Cao
        and Fleet (2014), Generalized Product of Experts, equation 2.
    """
    factors = {"prior": prior, **{f"experts[{name!r}]": expert for name, expert in experts.items()}}
    full = not all([_is_diagonal(part, factor) for part, factor in factors.items()])
    shown = [None, *((observed or {}).get(name) for name in experts)]
    precisions, shifts = [], []
    for (part, factor), rows in zip(factors.items(), shown, strict=True):
        if factor.event_shape != prior.event_shape:
            raise ValueError(
                f"{part}: expected event shape {tuple(prior.event_shape)}, that of the prior, got "
                f"{tuple(factor.event_shape)}. Give its network the outputs that the prior's latent_dim needs."
            )
        precision, shift = _natural(factor, full)
        if rows is not None:
            precision = torch.where(rows.reshape(-1, *(1,) * (1 + full)), precision, 0.0)
            shift = torch.where(rows[:, None], shift, 0.0)
        precisions.append(precision)
        shifts.append(shift)
    precision, shift = sum(precisions[1:], precisions[0]), sum(shifts[1:], shifts[0])
    if not full:
        return dist.Normal(shift / precision, precision.rsqrt()).to_event(1)
    loc = torch.cholesky_solve(shift[..., None], torch.linalg.cholesky(precision))[..., 0]
    return dist.MultivariateNormal(loc, precision_matrix=precision)


def _is_diagonal(part: str, factor: Any) -> bool:
    """Whether the covariance is diagonal; refuse what is not normal."""
    require_distribution(part, factor)
    if isinstance(getattr(factor, "base_dist", None), torch.distributions.Normal) and len(factor.event_shape) == 1:
        return True
    if hasattr(factor, "precision_matrix"):
        return False
    raise ValueError(
        f"{part}: expected a normal distribution, whose product with others is known, got {type(factor).__name__}. Use "
        "StandardNormalPrior, DiagonalNormalPosterior, MultivariateNormalPosterior or LowRankNormalPosterior."
    )


def _natural(factor: Any, full: bool) -> tuple[Tensor, Tensor]:
    """Return the precision, ``(*, D)`` or with ``full`` ``(*, D, D)``, and the precision times the mean, ``(*, D)``."""
    if hasattr(factor, "precision_matrix"):
        matrix = factor.precision_matrix
        return matrix, (matrix @ factor.mean[..., None])[..., 0]
    precision = factor.base_dist.scale.square().reciprocal()
    return torch.diag_embed(precision) if full else precision, precision * factor.base_dist.loc
