"""The importance-weighted bound as an objective."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ..._checks import require_positive_int
from ..importance import weigh
from ..path_gradient import GradientFactor
from .differentiable import DifferentiableELBO

__all__ = ["TraceIWAE_ELBO"]


class TraceIWAE_ELBO(DifferentiableELBO):
    r"""The importance-weighted bound, per datum and unscaled inside the logarithm.

    .. math:: \mathcal{L}_K = \frac{N}{B} \sum_{b=1}^{B} \log \frac{1}{K} \sum_{k=1}^{K}
        \frac{p(x_b, z_{kb})}{q(z_{kb} \mid x_b)}, \qquad z_{kb} \sim q(z \mid x_b)

    with B of the N data in the batch and K particles, drawn all at once in a plate left of all others. In expectation a
    lower bound on :math:`\log p(x)`; ``K=1`` is ``Trace_ELBO`` and larger K are tighter. Every latent variable must sit
    in the plate of the data and be reparameterised; or be summed out, which the model asks for by
    ``infer={"enumerate": "parallel"}``. Plates within a datum are summed, and what is observed outside the plate of the
    data is given (see :func:`pyro_vae.infer.trace_log_weights`). What ``poutine.scale`` multiplies (a :math:`\beta`
    that warms up) tempers its term of the weight; the objective is the bound where that scale is 1.

    The gradient with respect to the guide's parameters is one of three; the model's is the same in all.

    - ``"standard"``: that of the bound at reparameterised draws. Unbiased; its signal falls behind its noise as
      :math:`1/\sqrt{K}` (Rainforth et al. 2018), so that K above some ten can leave the encoder worse trained.
    - ``"dreg"``: doubly reparameterised,

      .. math:: \nabla_\phi \mathcal{L}_K = \mathbb{E} \sum_k \tilde w_k^2 \,
          \nabla_z \log w_k \, \nabla_\phi z_k, \qquad \tilde w_k = w_k / \sum_j w_j

      the gradient along the path of the draws, without the score. Unbiased, its signal does not fall behind with K,
      and it is zero for every draw where q is the exact posterior.
    - ``"stl"``: :math:`\sum_k \tilde w_k \nabla_z \log w_k \, \nabla_\phi z_k`. Zero at the exact posterior too, but
      biased for K above 1.

    ``"stl"`` and ``"dreg"`` run a guide of several latent variables twice (see :class:`TraceSTL_ELBO`).

    Args:
        num_particles: K.
        gradient: of the guide's parameters, see above.
        plate: name of the plate of the data. Where there is one plate alone, it is taken, whatever its name.

    Raises:
        ValueError: on a step, if the weights are not per datum (a global latent variable, say), or a latent variable is
            not reparameterised.

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
        Y. Burda, R. Grosse, R. Salakhutdinov (2016), Importance Weighted Autoencoders, equation 8; for ``"stl"`` G.
        Roeder, Y. Wu, D. Duvenaud (2017), Sticking the Landing, section 4; for ``"dreg"`` G. Tucker, D. Lawson, S. Gu,
        C. Maddison (2019), Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, equation 8.
    """

    def __init__(
        self,
        num_particles: int = 5,
        gradient: Literal["standard", "stl", "dreg"] = "standard",
        *,
        plate: str | None = "data",
    ) -> None:
        num_particles = require_positive_int("num_particles", num_particles)
        if gradient not in ("standard", "stl", "dreg"):
            raise ValueError(f"gradient: expected 'standard', 'stl' or 'dreg', got {gradient!r}.")
        super().__init__(num_particles=num_particles, max_plate_nesting=1, vectorize_particles=True)
        self.gradient = gradient
        self.plate = plate
        self._checked: tuple[Any, Any] | None = None  # the model and the guide of the last call,
        self._nesting: int | None = None  # and how deep their plates are

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Minus the bound in nats, summed over the data (0-dim); its gradient is the estimator's."""
        factor = GradientFactor() if self.gradient == "dreg" and torch.is_grad_enabled() else None
        found = weigh(
            model,
            guide,
            args,
            kwargs,
            self.num_particles,
            plate=self.plate,
            tempered=True,
            reparameterized=True,
            path=self.gradient != "standard" and torch.is_grad_enabled(),
            factor=factor,
            nesting=self._nesting if self._checked == (model, guide) else None,
        )
        self._checked, self._nesting = (model, guide), found.nesting
        if factor is not None:
            # The bound's own gradient has each weight once. A tempered log q has that part of the score to make up for.
            normalized = torch.softmax(found.log_weights.detach(), dim=0).reshape(found.shape)
            factor.factor = 1.0 + found.tempering * (normalized - 1.0)
        bound = torch.logsumexp(found.log_weights, dim=0) - math.log(self.num_particles)
        return -found.scale * bound.sum()
