"""A normal posterior whose covariance is diagonal plus one of low rank."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from .._checks import require_positive_int, require_positive_number
from .._precision import at_least_float32
from .network_input import network_input

__all__ = ["LowRankNormalPosterior"]


class LowRankNormalPosterior(nn.Module):
    r"""A normal posterior with a covariance of low rank plus a diagonal one.

    .. math:: q(z \mid x) = \mathcal{N}(z \mid \mu(x), W(x) W(x)^\top + \operatorname{diag} \sigma(x)^2), \qquad
        (\mu, v, W) = \mathrm{network}(x), \quad \sigma^2 = \sigma_{\min}^2 + e^{v}

    Args:
        network: any module that maps ``(*, *E)`` to ``(*, (2 + R) * D)``: means, log-variances :math:`v`, and the
            ``(D, R)`` entries of W, row by row.
        rank: :math:`R`, the number of columns of W.
        min_scale: :math:`\sigma_{\min} > 0`, which keeps the density finite.

    Returns:
        ``forward(x, *given, mask=None)`` returns a distribution of batch shape ``*`` and event shape ``(D,)``.

    Raises:
        ValueError: the network's output width is no multiple of ``2 + rank``; ``rank`` is no integer of at least 1;
            ``min_scale`` is not positive.
        TypeError: ``x`` is not a floating-point tensor.

    Example:
        >>> import torch
        >>> posterior = LowRankNormalPosterior(nn.Linear(784, (2 + 1) * 3), rank=1)
        >>> posterior(torch.zeros(5, 784)).event_shape
        torch.Size([3])

    Source:
        Rezende, Mohamed and Wierstra (2014), Stochastic Backpropagation and Approximate Inference in Deep Generative
        Models, section 4.3.
    """

    def __init__(self, network: nn.Module, rank: int, *, min_scale: float = 1e-4) -> None:
        super().__init__()
        self.network = network
        self.rank = require_positive_int("rank", rank)
        self.min_scale = require_positive_number("min_scale", min_scale)

    def forward(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> dist.LowRankMultivariateNormal:
        """Return q(z|x); ``given`` is not used. With a ``mask``, the network's input is x and the mask, joined."""
        parameters = at_least_float32(self.network(network_input(self.network, x, mask)))
        latent_dim, rest = divmod(parameters.shape[-1], 2 + self.rank)
        if rest or not latent_dim:
            raise ValueError(
                f"network: expected an output width of (2 + {self.rank}) * latent_dim (means, log-variances, factor), "
                f"got {parameters.shape[-1]}. Give the network that many outputs."
            )
        loc, log_variance, factor = parameters.split([latent_dim, latent_dim, self.rank * latent_dim], dim=-1)
        return dist.LowRankMultivariateNormal(
            loc, factor.unflatten(-1, (latent_dim, self.rank)), self.min_scale**2 + log_variance.exp()
        )
