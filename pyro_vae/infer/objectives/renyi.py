"""Renyi's bound, per datum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..._checks import require_number, require_positive_int
from ..importance import weigh
from .differentiable import DifferentiableELBO

__all__ = ["TraceRenyi_ELBO"]


class TraceRenyi_ELBO(DifferentiableELBO):
    r"""Renyi's variational bound, per datum and unscaled inside the logarithm.

    .. math:: \mathcal{L}_{\alpha, K} = \frac{N}{B} \sum_{b=1}^{B} \frac{1}{1 - \alpha} \log \frac{1}{K}
        \sum_{k=1}^{K} w_{kb}^{1 - \alpha}, \qquad w_{kb} = \frac{p(x_b, z_{kb})}{q(z_{kb} \mid x_b)},
        \quad z_{kb} \sim q(z \mid x_b)

    :math:`\alpha = 1` is the ELBO (the limit), :math:`\alpha = 0` the importance-weighted bound; between them it is a
    lower bound on :math:`\log p(x)` that is looser than the latter. As K grows it comes to
    :math:`\log p(x) - D_\alpha(q \| p(z \mid x))`, so that a smaller :math:`\alpha` makes q cover more of the
    posterior. Below 0 it is an upper bound in the limit of K, and for a finite K neither bound.

    ``pyro.infer.RenyiELBO`` has the N/B of a subsampled plate inside the logarithm, where it is no bound; here each
    datum has a logarithm of its own. What is asked of model and guide, and what ``poutine.scale`` does, is as in
    :class:`TraceIWAE_ELBO`.

    Args:
        alpha: :math:`\alpha`, a finite number.
        num_particles: K.
        plate: name of the plate of the data. Where there is one plate alone, it is taken, whatever its name.

    Raises:
        ValueError: an argument out of range; on a step as :class:`TraceIWAE_ELBO`.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> pyro.clear_param_store()
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> x = torch.tensor([0.0, 1.0])
        >>> loss = TraceRenyi_ELBO(alpha=0.5, num_particles=3).loss(model, guide, x)
        >>> abs(loss + dist.Normal(0.0, 2**0.5).log_prob(x).sum().item()) < 1e-5  # the guide is the exact posterior
        True

    Source:
        Y. Li, R. Turner (2016), Renyi Divergence Variational Inference, equation 7.
    """

    def __init__(self, alpha: float = 0.5, num_particles: int = 5, *, plate: str | None = "data") -> None:
        alpha = require_number("alpha", alpha)
        num_particles = require_positive_int("num_particles", num_particles)
        super().__init__(num_particles=num_particles, max_plate_nesting=1, vectorize_particles=True)
        self.alpha = alpha
        self.plate = plate

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Minus the bound in nats, summed over the data (0-dim); its gradient is the estimator's."""
        found = weigh(
            model, guide, args, kwargs, self.num_particles, plate=self.plate, tempered=True, reparameterized=True
        )
        power = 1.0 - self.alpha
        if power == 0.0:
            bound = found.log_weights.mean(0)
        else:
            bound = (torch.logsumexp(power * found.log_weights, dim=0) - math.log(self.num_particles)) / power
        return -found.scale * bound.sum()
