"""Bounds over a whole data set, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .._checks import require_positive_int, require_tensor
from .weights import log_weights

__all__ = ["Bounds", "bounds", "log_likelihood"]


class Bounds(NamedTuple):
    """Both bounds on log p(x) of each datum, ``(N,)`` each, nats, higher is better, from the same draws."""

    elbo: Tensor
    iwae: Tensor


@torch.no_grad()
def bounds(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    *,
    num_particles: int = 1000,
    max_bytes: int = 256 * 2**20,
    **kwargs: Any,
) -> Bounds:
    r"""The ELBO and the importance-weighted bound on log p(x) of every datum of a set, chunk by chunk.

    Both data and particles are cut, so that one pass of model and guide creates at most ``max_bytes`` of tensors; what
    a datum costs (the encoder) and a particle of it (the decoder) is measured on first small passes. Draws come from
    torch's global generator. A module's ``eval()`` is up to the caller.

    Args:
        model: p(x, z), with its data in a plate at ``dim=-1``.
        guide: q(z|x).
        x: data ``(N, *E)``.
        num_particles: K, draws of the latent variables per datum.
        max_bytes: bound on the tensors that one pass creates, in bytes (at least one datum and particle is computed).
        **kwargs: handed to both functions.

    Returns:
        ``Bounds(elbo, iwae)``, ``(N,)`` each, nats.

    Raises:
        TypeError, ValueError: ``x`` is not a tensor of at least one datum; a count below 1; as ``log_weights``.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.StandardNormalPrior(2),
        ...     pv.BernoulliLikelihood(pv.MLP(2, 6, hidden_dims=())),
        ...     pv.DiagonalNormalPosterior(pv.MLP(6, 4, hidden_dims=())),
        ... )
        >>> elbo, iwae = bounds(vae.model, vae.guide, torch.ones(5, 6), num_particles=10)
        >>> elbo.shape, iwae.shape
        (torch.Size([5]), torch.Size([5]))

    Source:
        Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders, equation 8 and section 5.
    """
    require_tensor("x", x)
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"x: expected data (N, *E) with N >= 1, got shape {tuple(x.shape)}.")
    require_positive_int("num_particles", num_particles)
    require_positive_int("max_bytes", max_bytes)

    per_datum, per_particle = _bytes_created(model, guide, x[:1], kwargs)
    data_per_pass = min(len(x), max(1, max_bytes // (per_datum + num_particles * per_particle)))
    # More than one datum a pass means that all their particles fit.
    room = (max_bytes - per_datum) // per_particle if data_per_pass == 1 else num_particles
    particles_per_pass = min(num_particles, max(1, room))

    elbos, iwaes = [], []
    for rows in x.split(data_per_pass):
        total, log_total = torch.zeros(()), torch.tensor(-math.inf)
        for first in range(0, num_particles, particles_per_pass):
            particles = min(particles_per_pass, num_particles - first)
            log_w = log_weights(model, guide, rows, num_particles=particles, **kwargs)
            total = total.to(log_w) + log_w.sum(0)
            log_total = torch.logaddexp(log_total.to(log_w), log_w.logsumexp(0))
        elbos.append(total / num_particles)
        iwaes.append(log_total - math.log(num_particles))
    return Bounds(torch.cat(elbos), torch.cat(iwaes))


def log_likelihood(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    *,
    num_particles: int = 1000,
    max_bytes: int = 256 * 2**20,
    **kwargs: Any,
) -> Tensor:
    """The importance-weighted bound on log p(x) of every datum of a set: ``bounds(...).iwae``, ``(N,)``, nats."""
    return bounds(model, guide, x, num_particles=num_particles, max_bytes=max_bytes, **kwargs).iwae


def _bytes_created(
    model: Callable[..., Any], guide: Callable[..., Any], datum: Tensor, kwargs: dict[str, Any]
) -> tuple[int, int]:
    """Bytes that a datum creates whatever its particles, and that each of its particles creates.

    Both are differences between passes, in which fixed costs cancel. Two data at least, for the sake of modules that
    take statistics over them.
    """

    def created(data: int, particles: int) -> int:
        x = datum.expand(data, *datum.shape[1:])
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []), _CreatedBytes() as meter:
            log_weights(model, guide, x, num_particles=particles, **kwargs)
        return meter.total

    base = created(2, 1)
    per_particle = max(1, (created(2, 2) - base) // 2)
    return max(0, created(3, 1) - base - per_particle), per_particle


class _CreatedBytes(TorchDispatchMode):
    """Adds up the bytes of all results, views included: an upper bound on what a pass holds at once."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.total += value.numel() * value.element_size()
        return result
