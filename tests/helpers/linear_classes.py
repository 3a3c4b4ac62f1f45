"""The exactly solvable model of the tests with a class: a linear-Gaussian VAE with a shift of x for each class."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

import pyro_vae as pv

from .linear_gaussian import linear_gaussian

__all__ = ["LinearClasses", "linear_classes"]


class LinearClasses(NamedTuple):
    """A semi-supervised VAE whose guide is the exact posterior, its data, and its closed forms."""

    vae: pv.SemiSupervisedVAE
    x: Tensor  # (N, d)
    y: Tensor  # (N,)
    log_joint: Tensor  # (N, C): log p(x, y)


def linear_classes(n: int = 60, d: int = 6, k: int = 2) -> LinearClasses:
    """Return y ~ (0.5, 0.2, 0.3), z ~ N(0, 1), x ~ N(W z + m_y, s^2), in float64, and ``n`` draws of it."""
    solved = linear_gaussian(d=d, k=k, dtype=torch.float64)
    shifts = 0.5 * torch.randn(3, d, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    probs = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    vae = pv.SemiSupervisedVAE(
        solved.vae.prior,
        pv.Conditional(pv.GaussianLikelihood(nn.Linear(k + 3, d), scale="shared")),
        pv.Conditional(pv.DiagonalNormalPosterior(nn.Linear(d + 3, 2 * k))),
        nn.Linear(d, 3),
        num_classes=3,
        class_probs=probs,
    ).double()
    old, likelihood = solved.vae.likelihood, vae.likelihood.part
    posterior, weight = vae.posterior.part, solved.vae.posterior.network.weight
    loadings, noise = old.network.weight, old(torch.zeros(1, k).double()).base_dist.scale.square().flatten()[0]
    means = old.network.bias + shifts
    precision = torch.linalg.inv(loadings @ loadings.T + noise * torch.eye(d).double())
    with torch.no_grad():
        vae.class_logits.copy_(probs.log())
        likelihood.scale.raw.copy_(old.scale.raw)
        likelihood.network.weight.copy_(torch.cat([loadings, shifts.T], 1))
        likelihood.network.bias.copy_(old.network.bias)
        posterior.network.weight.copy_(torch.cat([weight, -weight @ shifts.T], 1))
        posterior.network.bias.copy_(solved.vae.posterior.network.bias)
        vae.classifier.weight.copy_(means @ precision)
        vae.classifier.bias.copy_(probs.log() - (means @ precision * means).sum(1) / 2)
        generator = torch.Generator().manual_seed(3)
        y = torch.multinomial(probs, n, replacement=True, generator=generator)
        x = means[y] + torch.randn(n, k, generator=generator).double() @ loadings.T
        x = x + noise.sqrt() * torch.randn(n, d, generator=generator).double()
        normals = torch.distributions.MultivariateNormal(means, precision_matrix=precision)
        log_joint = probs.log() + normals.log_prob(x[:, None])
    return LinearClasses(vae, x, y, log_joint)
