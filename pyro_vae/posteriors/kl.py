"""Closed forms of KL(q || p) for our posteriors and the standard normal prior, where neither torch nor Pyro has one.

``TraceMeanField_ELBO`` draws samples in place of a closed form that is missing, and says nothing. torch has the normal
with full covariance against another such normal, but not against independent normals, which is what
``StandardNormalPrior`` returns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal, kl_divergence
from torch.distributions.kl import register_kl

__all__: list[str] = []


@register_kl(MultivariateNormal, Independent)
def _multivariate_independent(q: MultivariateNormal, p: Independent) -> Tensor:
    return kl_divergence(q, _as_multivariate(p))


@register_kl(LowRankMultivariateNormal, Independent)
def _low_rank_independent(q: LowRankMultivariateNormal, p: Independent) -> Tensor:
    return kl_divergence(q, _as_multivariate(p))


def _as_multivariate(p: Independent) -> MultivariateNormal:
    if not isinstance(p.base_dist, Normal) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError  # as torch says of pairs that it does not know
    return MultivariateNormal(p.base_dist.loc, scale_tril=torch.diag_embed(p.base_dist.scale), validate_args=False)
