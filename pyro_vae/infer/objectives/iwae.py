"""The importance-weighted bound as an objective."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.elbo import ELBO
from pyro.infer.util import torch_item
from pyro.util import warn_if_nan
from torch import Tensor

from ..importance import weigh

__all__ = ["TraceIWAE_ELBO"]


class TraceIWAE_ELBO(ELBO):
    r"""The importance-weighted bound, per datum and unscaled inside the logarithm.

    .. math:: \mathcal{L}_K = \frac{N}{B} \sum_{b=1}^{B} \log \frac{1}{K} \sum_{k=1}^{K}
        \frac{p(x_b, z_{kb})}{q(z_{kb} \mid x_b)}, \qquad z_{kb} \sim q(z \mid x_b)

    with B of the N data in the batch and K particles, drawn all at once in a plate at ``dim=-2``. In expectation a
    lower bound on :math:`\log p(x)`; ``K=1`` is ``Trace_ELBO`` and larger K are tighter. Every site must sit in the
    data plate at ``dim=-1`` and every latent variable must be reparameterised. What ``poutine.scale`` multiplies (a
    :math:`\beta` that warms up) tempers its term of the weight; the objective is the bound where that scale is 1.

    Args:
        num_particles: K.

    Raises:
        ValueError: on a step, if a site is global, a latent variable is enumerated or not reparameterised.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> pyro.clear_param_store()
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     scale = pyro.param("scale", torch.tensor(0.5**0.5))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, scale))
        >>> x = torch.tensor([0.0, 1.0])
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), TraceIWAE_ELBO(num_particles=5))
        >>> loss = svi.evaluate_loss(x)  # the guide is the exact posterior: -log p(x), whatever is drawn
        >>> abs(loss + dist.Normal(0.0, 2**0.5).log_prob(x).sum().item()) < 1e-5
        True

    Source:
        Y. Burda, R. Grosse, R. Salakhutdinov (2016), Importance Weighted Autoencoders, equation 8.
    """

    def __init__(self, num_particles: int = 5) -> None:
        if num_particles < 1:
            raise ValueError(f"num_particles: expected an integer >= 1, got {num_particles}.")
        super().__init__(num_particles=num_particles, max_plate_nesting=1, vectorize_particles=True)

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Minus the bound in nats, summed over the data (0-dim); its gradient is the estimator's."""
        log_weights, scale = weigh(model, guide, args, kwargs, self.num_particles, tempered=True, reparameterised=True)
        bound = torch.logsumexp(log_weights, dim=0) - math.log(self.num_particles)
        return -scale * bound.sum()

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """Minus the bound in nats, summed over the data."""
        with torch.no_grad():
            loss: float = torch_item(self.differentiable_loss(model, guide, *args, **kwargs))
        warn_if_nan(loss, "loss")
        return loss

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The same, and adds its gradients to the parameters' ``.grad``."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        value: float = torch_item(loss)
        warn_if_nan(value, "loss")
        return value

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("TraceIWAE_ELBO weighs all particles in one trace (pyro_vae.infer.weights).")
