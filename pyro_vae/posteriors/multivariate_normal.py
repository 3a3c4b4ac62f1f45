"""A normal posterior with any covariance."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .._checks import require_positive_number
from .._precision import at_least_float32
from .network_input import network_input

__all__ = ["MultivariateNormalPosterior"]


class MultivariateNormalPosterior(nn.Module):
    r"""A normal posterior with full covariance; a network gives its mean and the Cholesky factor.

    .. math:: q(z \mid x) = \mathcal{N}(z \mid \mu(x), L(x) L(x)^\top), \qquad
        (\mu, v, l) = \mathrm{network}(x), \quad L_{ii} = \sigma_{\min} + e^{v_i / 2}, \quad L_{ij} = l_{ij} \; (i > j)

    Args:
        network: any module that maps ``(*, *E)`` to ``(*, 2 * D + D * (D - 1) / 2)``: the means, the logarithms
            :math:`v` of the squared diagonal of L, and the entries of L below its diagonal, row by row.
        min_scale: :math:`\sigma_{\min} > 0`, which keeps the density finite.

    Returns:
        ``forward(x, *given, mask=None)`` returns a distribution of batch shape ``*`` and event shape ``(D,)``.

    Raises:
        ValueError: no D has the network's output width; ``min_scale`` is not positive.
        TypeError: ``x`` is not a floating-point tensor.

    Example:
        >>> posterior = MultivariateNormalPosterior(nn.Linear(784, 2 * 3 + 3))
        >>> posterior(torch.zeros(5, 784)).covariance_matrix.shape
        torch.Size([5, 3, 3])

    Source:
        Kingma and Welling (2019), An Introduction to Variational Autoencoders, section 2.5.1 and algorithm 2.
    """

    def __init__(self, network: nn.Module, *, min_scale: float = 1e-4) -> None:
        super().__init__()
        self.network = network
        self.min_scale = require_positive_number("min_scale", min_scale)

    def forward(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> dist.MultivariateNormal:
        """Return q(z|x); ``given`` is not used. With a ``mask``, the network's input is x and the mask, joined."""
        parameters = at_least_float32(self.network(network_input(self.network, x, mask)))
        latent_dim = _latent_dim(parameters.shape[-1])
        loc, log_variance, below = parameters.split(
            [latent_dim, latent_dim, latent_dim * (latent_dim - 1) // 2], dim=-1
        )
        rows, columns = torch.tril_indices(latent_dim, latent_dim, offset=-1, device=below.device)
        lower = below.new_zeros(*below.shape[:-1], latent_dim, latent_dim)
        lower[..., rows, columns] = below
        scale_tril = lower + torch.diag_embed(self.min_scale + (log_variance / 2).exp())
        return dist.MultivariateNormal(loc, scale_tril=scale_tril)


def _latent_dim(width: int) -> int:
    """Return D where ``width`` is 2 D + D (D - 1) / 2."""
    latent_dim = (math.isqrt(9 + 8 * width) - 3) // 2
    if latent_dim < 1 or 2 * latent_dim + latent_dim * (latent_dim - 1) // 2 != width:
        raise ValueError(
            "network: expected an output width of 2 * D + D * (D - 1) / 2 (means, log-variances, the Cholesky factor "
            f"below its diagonal), such as 9 for D = 3, got {width}. Give the network that many outputs."
        )
    return latent_dim
