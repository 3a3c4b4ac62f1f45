"""InfoVAE: a distance between the aggregate posterior and the prior beside, or in place of, the KL term."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..._checks import require_number, require_positive_int, require_positive_number
from .differentiable import DifferentiableELBO
from .latents import latents, only_latent, scaled_sum

__all__ = ["TraceMMD", "squared_mmd"]


class TraceMMD(DifferentiableELBO):
    r"""The evidence lower bound with the maximum mean discrepancy between aggregate posterior and prior: InfoVAE.

    .. math:: \frac{N}{B} \sum_b \left[ \mathbb{E}_q \log p(x_b \mid z) - \beta \, KL(q(z \mid x_b) \| p(z)) \right] -
        N \lambda \, MMD^2\big(q(z), p(z)\big), \qquad q(z) = \frac{1}{N} \sum_n q(z \mid x_n)

    where the KL term is that of the draw. With :math:`\beta = 0` the code may say all about its datum that the decoder
    can use, while q(z) as a whole is held to the prior (a Wasserstein autoencoder with a random encoder); with
    :math:`\beta = 1, \lambda = 0` it is the ELBO. In the paper's letters :math:`\beta = 1 - \alpha` and
    :math:`\lambda = \alpha + \lambda' - 1`. It is no bound on log p(x) unless :math:`\beta \ge 1`.

    MMD\ :sup:`2` is estimated without bias from the batch's draws z and as many draws of p(z), with the kernel
    :math:`k(z, z') = \exp(-\|z - z'\|^2 / 2 \ell^2)`.

    Args:
        scale: :math:`\lambda`; at least 0.
        beta: weight of the KL term; at least 0.
        lengthscale: :math:`\ell`; by default the square root of the number of dimensions of z.
        site: name of the latent variable, a vector per datum whose p(z) depends on no other latent variable. The only
            one by default; other latent variables keep their KL terms.
        num_particles: how often model and guide are run; their mean is the loss.
        plate: name of the plate of the data. Where there is one plate alone, it is taken, whatever its name.

    Raises:
        ValueError: an argument out of range; on a step, a batch of one datum, a latent variable that is not as
            described.

    Example:
        >>> import pyro_vae as pv
        >>> _ = torch.manual_seed(0)
        >>> vae = pv.VAE(
        ...     pv.StandardNormalPrior(2),
        ...     pv.BernoulliLikelihood(pv.MLP(2, 6, hidden_dims=())),
        ...     pv.DiagonalNormalPosterior(pv.MLP(6, 4, hidden_dims=())),
        ... )
        >>> svi = pv.CompiledSVI(vae.model, vae.guide, pv.Adam({"lr": 1e-3}), TraceMMD(scale=10.0))
        >>> loss = svi.step(torch.ones(5, 6))

    Source:
        S. Zhao, J. Song, S. Ermon (2019), InfoVAE: Balancing Learning and Inference in Variational Autoencoders,
        equations 6 and 7; for the estimate A. Gretton et al. (2012), A Kernel Two-Sample Test, equation 3.
    """

    def __init__(
        self,
        scale: float = 10.0,
        beta: float = 0.0,
        *,
        lengthscale: float | None = None,
        site: str | None = None,
        num_particles: int = 1,
        plate: str | None = "data",
    ) -> None:
        scale, beta = require_number("scale", scale, 0.0), require_number("beta", beta, 0.0)
        lengthscale = None if lengthscale is None else require_positive_number("lengthscale", lengthscale)
        super().__init__(num_particles=require_positive_int("num_particles", num_particles))
        self.scale = scale
        self.beta = beta
        self.lengthscale = lengthscale
        self.site = site
        self.plate = plate

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Minus the objective in nats, summed over the data (0-dim); its gradient is the estimator's."""
        losses = []
        for _ in range(self.num_particles):
            found = latents(model, guide, args, kwargs, self.plate, "TraceMMD")
            p, q = only_latent(found, self.site, "TraceMMD")
            data = found.data
            assert data is not None  # only_latent has seen to it
            z, prior = q["value"], p["fn"]
            if len(z) < 2:
                raise ValueError("TraceMMD: expected a batch of at least two data, to estimate q(z), got one.")
            draws = prior.rsample() if prior.has_rsample else prior.sample()
            distance = squared_mmd(z.flatten(1), draws.flatten(1), self.lengthscale)
            loss = -found.log_likelihood + self.scale * data.size * data.scale * distance
            for name, site in found.posterior.items():
                weight = self.beta if site is q else 1.0
                ratio = site["unscaled_log_prob"] - found.prior[name]["unscaled_log_prob"]
                loss = loss + weight * scaled_sum(ratio, site)
            losses.append(loss)
        return torch.stack(losses).mean()


def squared_mmd(x: Tensor, y: Tensor, lengthscale: float | None = None) -> Tensor:
    """An unbiased estimate of the squared maximum mean discrepancy of two samples, ``(B, D)`` each; may be below 0."""
    scale = x.shape[1] if lengthscale is None else lengthscale**2

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-(a.unsqueeze(1) - b.unsqueeze(0)).square().sum(-1) / (2 * scale))

    def within(a: Tensor) -> Tensor:
        return (kernel(a, a).sum() - len(a)) / (len(a) * (len(a) - 1))  # without a draw's kernel with itself, 1

    return within(x) + within(y) - 2 * kernel(x, y).mean()
