"""A normal posterior with diagonal covariance."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from .._checks import require_positive_number
from .._precision import at_least_float32
from .network_input import network_input

__all__ = ["DiagonalNormalPosterior"]


class DiagonalNormalPosterior(nn.Module):
    r"""A normal posterior with diagonal covariance; a network gives its means and variances.

    .. math:: q(z \mid x) = \mathcal{N}(z \mid \mu(x), \operatorname{diag} \sigma(x)^2), \qquad
        (\mu, v) = \mathrm{network}(x), \quad \sigma = \sigma_{\min} + e^{v / 2}

    Args:
        network: any module that maps ``(*, *E)`` to ``(*, 2 * D)``: first the means, then the log-variances :math:`v`.
        min_scale: :math:`\sigma_{\min} > 0`, which keeps the density finite.

    Returns:
        ``forward(x, *given, mask=None)`` returns a distribution of batch shape ``*`` and event shape ``(D,)``.

    Raises:
        ValueError: the network's output width is odd; ``min_scale`` is not positive.
        TypeError: ``x`` is not a floating-point tensor.

    Example:
        >>> import torch
        >>> posterior = DiagonalNormalPosterior(nn.Linear(784, 2 * 3))
        >>> q = posterior(torch.zeros(5, 784))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([3]))

    Source:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, equation 9 and appendix C.2.
    """

    def __init__(self, network: nn.Module, *, min_scale: float = 1e-4) -> None:
        super().__init__()
        self.network = network
        self.min_scale = require_positive_number("min_scale", min_scale)

    def forward(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> dist.Independent:
        """Return q(z|x); ``given`` is not used. With a ``mask``, the network's input is x and the mask, joined."""
        moments = at_least_float32(self.network(network_input(self.network, x, mask)))
        if moments.shape[-1] % 2:
            raise ValueError(
                f"network: expected an even output width, 2 * latent_dim (means and log-variances), "
                f"got {moments.shape[-1]}. Give the network 2 * latent_dim outputs."
            )
        loc, log_variance = moments.chunk(2, dim=-1)
        return dist.Normal(loc, self.min_scale + (log_variance / 2).exp()).to_event(1)
