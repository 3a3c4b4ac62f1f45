"""The standard normal prior."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .._checks import require_positive_int

__all__ = ["StandardNormalPrior"]


class StandardNormalPrior(nn.Module):
    r"""The standard normal prior.

    .. math:: p(z) = \mathcal{N}(z \mid 0, I_D)

    Args:
        latent_dim: :math:`D`, the dimension of one latent variable.

    Returns:
        ``forward(*given)`` returns a distribution of batch shape ``()`` and event shape ``(D,)``.

    Raises:
        ValueError: ``latent_dim`` is not a positive integer.

    Example:
        >>> prior = StandardNormalPrior(2)
        >>> prior().log_prob(torch.zeros(3, 2))
        tensor([-1.8379, -1.8379, -1.8379])

    Source:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, section 3.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        latent_dim = require_positive_int("latent_dim", latent_dim)
        # Buffers, so that .to(device, dtype) moves them; not persistent, since they are constants.
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self, *given: Any) -> dist.Independent:
        """Return p(z); ``given`` is not used."""
        return dist.Normal(self.loc, self.scale).to_event(1)
