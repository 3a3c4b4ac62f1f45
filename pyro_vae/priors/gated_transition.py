"""A transition of a Markov chain: p(z_t | z_{t-1})."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import require_positive_int, require_positive_number
from .._precision import at_least_float32

__all__ = ["GatedTransition"]


class GatedTransition(nn.Module):
    r"""A normal transition whose mean is, element by element, between a linear and a nonlinear function of the past.

    .. math:: p(z_t \mid z_{t-1}) = \mathcal{N}(z_t \mid (1 - g) \odot (W z_{t-1} + b) + g \odot h,
        \operatorname{diag} \sigma^2), \qquad g = \sigma(\mathrm{MLP}_1(z_{t-1})), \quad h = \mathrm{MLP}_2(z_{t-1}),
        \quad \sigma = \sigma_{\min} + \operatorname{softplus}(V \operatorname{relu}(h) + c)

    Args:
        latent_dim: D; W starts at the identity.
        hidden_dim: width of the hidden layer of either network.
        min_scale: :math:`\sigma_{\min} > 0`.

    Returns:
        ``forward(z)`` maps ``(*, D)`` to a distribution of batch shape ``*`` and event shape ``(D,)``.

    Raises:
        ValueError: a width below 1; ``min_scale`` is not positive.

    Example:
        >>> GatedTransition(3, hidden_dim=8)(torch.zeros(5, 3)).event_shape
        torch.Size([3])

    Source:
        Krishnan, Shalit and Sontag (2017), Structured Inference Networks for Nonlinear State Space Models, section 5.
    """

    def __init__(self, latent_dim: int, *, hidden_dim: int = 200, min_scale: float = 1e-3) -> None:
        super().__init__()
        d, h = require_positive_int("latent_dim", latent_dim), require_positive_int("hidden_dim", hidden_dim)
        self.min_scale = require_positive_number("min_scale", min_scale)
        self.gate = nn.Sequential(nn.Linear(d, h), nn.ReLU(), nn.Linear(h, d))
        self.proposal = nn.Sequential(nn.Linear(d, h), nn.ReLU(), nn.Linear(h, d))
        self.linear = nn.Linear(d, d)
        self.raw_scale = nn.Linear(d, d)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(d))
            self.linear.bias.zero_()

    def forward(self, z: Tensor, *given: Any) -> dist.Independent:
        """Return p(z_t|z_{t-1})."""
        h = at_least_float32(self.proposal(z))
        loc = torch.lerp(at_least_float32(self.linear(z)), h, at_least_float32(self.gate(z)).sigmoid())
        scale = self.min_scale + F.softplus(at_least_float32(self.raw_scale(h.relu())))
        return dist.Normal(loc, scale).to_event(1)
