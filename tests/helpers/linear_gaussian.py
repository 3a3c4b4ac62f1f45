"""The exactly solvable model of the tests: a linear-Gaussian VAE."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

import pyro_vae as pv


class LinearGaussian(NamedTuple):
    """A linear-Gaussian VAE at its optimum, probabilistic PCA (Tipping and Bishop 1999), and its closed forms."""

    vae: pv.VAE
    x: Tensor
    log_likelihood: float  # mean over the data, nats
    kl: float  # mean over the data, nats
    log_px: Tensor  # (N,), of each datum
    posterior_scale: Tensor  # (k,)


def linear_gaussian(n: int = 500, d: int = 6, k: int = 2, dtype: torch.dtype = torch.float32) -> LinearGaussian:
    """Return the model and ``n`` data of ``d`` elements, with ``k`` latent dimensions."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.tensor([2.0, 1.2], dtype=torch.float64)[:k]
    basis = torch.randn(d, k, generator=generator, dtype=torch.float64) * lengths
    latent = torch.randn(n, k, generator=generator, dtype=torch.float64)
    x = latent @ basis.T + 0.5 * torch.randn(n, d, generator=generator, dtype=torch.float64) + 1.0
    mean = x.mean(0)
    covariance = (x - mean).T @ (x - mean) / n
    eigenvalues, directions = torch.linalg.eigh(covariance)
    eigenvalues, directions = eigenvalues.flip(0), directions.flip(1)
    variance = eigenvalues[k:].mean()
    weight = directions[:, :k] * (eigenvalues[:k] - variance).sqrt()
    log_determinant = eigenvalues[:k].log().sum() + (d - k) * variance.log()
    log_likelihood = -0.5 * (d * math.log(2 * math.pi) + log_determinant + d)
    kl = 0.5 * (eigenvalues[:k] / variance).log().sum()
    noise = variance * torch.eye(d, dtype=torch.float64)
    marginal = torch.distributions.MultivariateNormal(mean, weight @ weight.T + noise)

    vae = linear_vae(d, k, scale="shared").double()
    posterior_mean = (weight / eigenvalues[:k]).T  # E[z|x] = diag(1 / l) W^T (x - mean), columns of W being orthogonal
    posterior_variance = variance / eigenvalues[:k]
    min_scale = vae.posterior.min_scale
    with torch.no_grad():
        vae.likelihood.network.weight.copy_(weight)
        vae.likelihood.network.bias.copy_(mean)
        vae.likelihood.scale.raw.copy_(vae.likelihood.scale.inverse(variance.sqrt()))
        vae.posterior.network.weight.zero_()
        vae.posterior.network.weight[:k].copy_(posterior_mean)
        vae.posterior.network.bias[:k].copy_(-posterior_mean @ mean)
        vae.posterior.network.bias[k:].copy_(2 * (posterior_variance.sqrt() - min_scale).log())
    return LinearGaussian(
        vae.to(dtype),
        x.to(dtype),
        log_likelihood.item(),
        kl.item(),
        marginal.log_prob(x).to(dtype),
        posterior_variance.sqrt().to(dtype),
    )


def linear_vae(d: int, k: int, scale: float | str = "shared") -> pv.VAE:
    """Return a linear-Gaussian VAE with random parameters."""
    return pv.VAE(
        pv.StandardNormalPrior(k),
        pv.GaussianLikelihood(nn.Linear(k, d), scale=scale),
        pv.DiagonalNormalPosterior(nn.Linear(d, 2 * k)),
    )
