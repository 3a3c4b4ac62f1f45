"""Fit a prior to the aggregate posterior of a trained VAE."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import ImproperUniform
from torch import Tensor, nn

from .._checks import require_distribution, require_positive_int, require_positive_number, require_rows, require_tensor
from .mixture import MixturePrior

__all__ = ["fit_prior"]


def fit_prior(
    vae: Any,
    train: Tensor | tuple[Tensor, ...],
    validation: Tensor | tuple[Tensor, ...],
    *,
    prior: nn.Module | None = None,
    epochs: int = 30,
    batch_size: int = 500,
    learning_rate: float = 1e-2,
    num_particles: int = 10,
) -> Callable[..., Any]:
    r"""Return a prior fitted to the aggregate posterior of a trained VAE, or the old one where that is no worse.

    .. math:: \max_p \; \frac{1}{N} \sum_{n=1}^{N} \mathbb{E}_{q(z \mid x_n)} [\log p(z)]

    Only log p(z) of the ELBO depends on the prior, so that this maximizes the ELBO with likelihood and posterior held
    fixed. After each epoch the objective is evaluated on the validation data, with the same draws of z each time, and
    the best state is kept. The VAE is not changed; set ``vae.prior = fit_prior(vae, ...)``.

    Args:
        vae: has a ``prior`` and ``encode(x, *given)``. Of a ``HierarchicalVAE`` the prior is that of z_L. An
            ``Autoencoder``, which has no prior yet, gets one of its codes.
        train: data ``(N, *E)``, or a tuple of them and of what is given with them.
        validation: likewise, of data that were not trained on.
        prior: the prior to fit, trained in place; by default ``MixturePrior(D, 100)``. A ``MixturePrior`` begins with
            its means on draws of the aggregate posterior.
        epochs: passes over the training data, each with new draws of z.
        batch_size: data a step.
        learning_rate: of Adam; it falls to zero along half a cosine.
        num_particles: draws of z for each validation datum.

    Returns:
        The new prior, or ``vae.prior``: on the validation draws never worse than before.

    Raises:
        TypeError: the data are not tensors.
        ValueError: ``prior`` has no parameters; the data are empty, or what is given has another number of rows; an
            option is out of range.

    Example:
        >>> import pyro_vae as pv
        >>> _ = torch.manual_seed(0)
        >>> vae = pv.VAE(
        ...     pv.StandardNormalPrior(2),
        ...     pv.BernoulliLikelihood(pv.MLP(2, 6, hidden_dims=(8,))),
        ...     pv.DiagonalNormalPosterior(pv.MLP(6, 2 * 2, hidden_dims=(8,))),
        ... )
        >>> x = torch.rand(200, 6).round()
        >>> vae.prior = pv.fit_prior(vae, x[:150], x[150:], prior=pv.MixturePrior(2, 5), epochs=3)
        >>> vae.sample(4).shape
        torch.Size([4, 6])

    Source:
        Hoffman and Johnson (2016), ELBO surgery; Dai and Wipf (2019), Diagnosing and Enhancing VAE Models.
    """
    train, validation = _data("train", train), _data("validation", validation)
    for name, number in (("epochs", epochs), ("batch_size", batch_size), ("num_particles", num_particles)):
        require_positive_int(name, number)
    learning_rate = require_positive_number("learning_rate", learning_rate)
    with torch.no_grad():
        held_out = _draws(vae, validation, batch_size, num_particles)
        z = _draws(vae, train, batch_size, 1)[0]
    old = _mean_log_prob(vae.prior, held_out, validation[1:], batch_size)
    if prior is None:
        prior = MixturePrior(z.shape[-1], 100).to(z)
    best, state = old, copy.deepcopy(prior.state_dict()) if prior is vae.prior else None
    if isinstance(prior, MixturePrior):
        prior.initialize(z)
    parameters = [p for p in prior.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            f"prior: expected a prior with parameters to train, got {type(prior).__name__} without. Give "
            "MixturePrior(latent_dim, 100), for instance."
        )
    optimizer = torch.optim.Adam(parameters, learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        with torch.no_grad():
            z = _draws(vae, train, batch_size, 1)[0]
        for rows in torch.randperm(len(z), device=z.device).split(batch_size):
            optimizer.zero_grad()
            loss = -prior(*(value[rows] for value in train[1:])).log_prob(z[rows]).mean()
            loss.backward(inputs=parameters)  # and not those of the posterior, which a VampPrior evaluates
            optimizer.step()
        schedule.step()
        new = _mean_log_prob(prior, held_out, validation[1:], batch_size)
        if new > best:
            best, state = new, copy.deepcopy(prior.state_dict())
    optimizer.zero_grad()  # the next training step would add to what is left
    if state is None:
        old_prior: Callable[..., Any] = vae.prior
        return old_prior
    prior.load_state_dict(state)
    return prior


def _data(name: str, data: Any) -> tuple[Tensor, ...]:
    data = data if isinstance(data, tuple) else (data,)
    for i, value in enumerate(data):
        require_tensor(f"{name}[{i}]", value)
        require_rows(f"{name}[{i}]", value, len(data[0]), f"as in {name}[0]")
    if not len(data[0]):
        raise ValueError(f"{name}: expected at least one datum, got none.")
    return data


def _draws(vae: Any, data: tuple[Tensor, ...], batch_size: int, num_particles: int) -> Tensor:
    """Return draws of q(z|x), ``(K, N, D)``."""
    parts = []
    for batch in zip(*(value.split(batch_size) for value in data), strict=True):
        parts.append(_draw(vae, batch, num_particles))
    return torch.cat(parts, 1)


def _draw(vae: Any, batch: tuple[Tensor, ...], num_particles: int) -> Tensor:
    if hasattr(vae, "draw_top"):  # a hierarchy, whose top layer has the prior
        return torch.stack([vae.draw_top(*batch) for _ in range(num_particles)])
    draws: Tensor = vae.encode(*batch).sample((num_particles,))
    return draws


@torch.no_grad()
def _mean_log_prob(prior: Any, z: Tensor, given: tuple[Tensor, ...], batch_size: int) -> float:
    """Return the mean of log p(z) in nats per datum."""
    if isinstance(prior(*given), ImproperUniform):  # no prior
        return -math.inf
    total = 0.0
    for start in range(0, z.shape[1], batch_size):
        rows = slice(start, start + batch_size)
        p = prior(*(value[rows] for value in given))
        require_distribution("prior", p)
        total += float(p.log_prob(z[:, rows]).double().sum())
    return total / z[..., 0].numel()
