"""Importance log-weights and the bounds on log p(x) that they give."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._checks import require_positive_int, require_tensor
from ..infer.importance import trace_log_weights

__all__ = ["elbo", "iwae", "log_weights"]


def log_weights(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_particles: int = 1,
    plate: str | None = "data",
    **kwargs: Any,
) -> Tensor:
    r"""Log importance weights of data under any Pyro model and guide, in nats.

    .. math:: \log w_{kb} = \log p(x_b, z_{kb}) - \log q(z_{kb} \mid x_b), \qquad z_{kb} \sim q(z \mid x_b)

    They are unscaled: neither ``beta`` nor the plate's N/B changes them, and an observed site or factor of the model
    that is marked with ``infer={"is_regularizer": True}``, a term of training alone, is left out. Differentiable with
    respect to the parameters.

    - Every latent variable sits in the plate of the data. Further plates, left or right of it (time, pixels, views),
      are summed into their datum. Particles are drawn in a plate left of all others.
    - A discrete latent variable that the model marks with ``infer={"enumerate": "parallel"}``, and that the guide does
      not sample, is summed out exactly: a mixture's weights are those of the mixture.
    - One that the guide marks, for ``TraceEnum_ELBO``, is drawn like any other.
    - What is observed outside the plate of the data is given, such as a global variable that
      ``pyro.poutine.condition`` fixes: the weights are those of x_b given its value, and its own log-density, which
      belongs to no datum, is left out.

    Args:
        model: p(x, z).
        guide: q(z|x).
        *args: handed to both functions, as is ``**kwargs``.
        num_particles: K, draws of the latent variables per datum.
        plate: name of the plate of the data. Where there is one plate alone, it is taken, whatever its name. None: the
            arguments are one datum, and all plates belong to it.

    Returns:
        ``(K, B)``.

    Raises:
        ValueError: the weights do not factorise over the data (a global latent variable, say, or an observed one that
            depends on latent variables of the data); a site is missing; none of several plates is called ``plate``; a
            plate within a datum is subsampled; the guide has a point mass (``AutoDelta``), which has no density.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.StandardNormalPrior(2),
        ...     pv.BernoulliLikelihood(pv.MLP(2, 6, hidden_dims=())),
        ...     pv.DiagonalNormalPosterior(pv.MLP(6, 4, hidden_dims=())),
        ... )
        >>> log_w = log_weights(vae.model, vae.guide, torch.ones(5, 6), num_particles=10)
        >>> log_w.shape, elbo(log_w).shape, iwae(log_w).shape
        (torch.Size([10, 5]), torch.Size([5]), torch.Size([5]))
        >>> bool((iwae(log_w) >= elbo(log_w)).all())
        True

    Source:
        Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders, equation 7.
    """
    num_particles = require_positive_int("num_particles", num_particles)
    return trace_log_weights(model, guide, args, kwargs, num_particles, plate=plate)


def elbo(log_weights: Tensor) -> Tensor:
    r"""The evidence lower bound of each datum, in nats, higher is better.

    .. math:: \tfrac{1}{K} \sum_k \log w_{kb}

    Args:
        log_weights: ``(K, B)``.

    Returns:
        ``(B,)``.

    Raises:
        TypeError, ValueError: ``log_weights`` is not a tensor of at least one particle.

    Source:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, equation 2.
    """
    _require_particles(log_weights)
    return log_weights.mean(0)


def iwae(log_weights: Tensor) -> Tensor:
    r"""The importance-weighted bound on log p(x) of each datum, in nats, higher is better; exact as K grows.

    .. math:: \log \tfrac{1}{K} \sum_k w_{kb}

    Args:
        log_weights: ``(K, B)``.

    Returns:
        ``(B,)``.

    Raises:
        TypeError, ValueError: ``log_weights`` is not a tensor of at least one particle.

    Source:
        Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders, equation 8.
    """
    _require_particles(log_weights)
    return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))


def _require_particles(log_weights: Tensor) -> None:
    require_tensor("log_weights", log_weights)
    if log_weights.ndim == 0 or len(log_weights) == 0:
        raise ValueError(f"log_weights: expected shape (K, B) with K >= 1 particles, got {tuple(log_weights.shape)}.")
