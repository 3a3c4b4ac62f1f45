"""A linear-Gaussian hierarchy with its exact posterior, bottom-up and top-down."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import pyro_vae as pv


class LinearHierarchy(NamedTuple):
    """z_L ~ N(0, I), z_l ~ N(A_l z_l+1 + b_l, s^2 I), x ~ N(W z_1 + m, s^2 I), its data, and log p(x) of each."""

    vae: pv.HierarchicalVAE
    x: Tensor  # (N, d)
    log_px: Tensor  # (N,)


def linear_hierarchy(
    layers: int = 3, *, top_down: bool = False, n: int = 50, d: int = 4, k: int = 2
) -> LinearHierarchy:
    """Return the model with the exact posterior as its guide, and ``n`` data, in float64.

    Bottom-up the matrices are any, and the layers of q have full covariances. Top-down they are such that the
    covariances of p(z_l|z_l+1, x) are diagonal: W with orthogonal columns, A_l diagonal.
    """
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    eye, scale = torch.eye(k, dtype=torch.float64), 0.7
    decoder = torch.linalg.qr(normal(d, k))[0] * torch.tensor([2.0, 0.8]) if top_down else normal(d, k)
    maps = [torch.diag(normal(k)) if top_down else normal(k, k) for _ in range(layers - 1)]
    shifts = [normal(k) for _ in range(layers - 1)]
    mean_x = normal(d)
    # The marginal of each layer, from the top.
    loc, covariance = [torch.zeros(k, dtype=torch.float64)], [eye]
    for matrix, shift in zip(reversed(maps), reversed(shifts), strict=True):
        loc.insert(0, matrix @ loc[0] + shift)
        covariance.insert(0, matrix @ covariance[0] @ matrix.T + scale**2 * eye)
    noise = scale**2 * torch.eye(d, dtype=torch.float64)
    marginal = MultivariateNormal(decoder @ loc[0] + mean_x, decoder @ covariance[0] @ decoder.T + noise)
    x = marginal.mean + normal(n, d) @ marginal.scale_tril.T

    likelihood = pv.GaussianLikelihood(affine(decoder, mean_x), scale=scale)
    conditionals = [constant_scale(a, b, scale) for a, b in zip(maps, shifts, strict=True)]
    weights, biases = [decoder, *maps], [mean_x, *shifts]  # of x given z_1, of z_1 given z_2, ...
    networks = None
    if top_down:
        networks, posteriors = estimates(weights, biases, scale)
    else:
        posteriors = [exact_posterior(*parts, scale) for parts in zip(weights, biases, loc, covariance, strict=True)]
    prior = pv.StandardNormalPrior(k)
    vae = pv.HierarchicalVAE(prior, conditionals, likelihood, posteriors, networks).double()
    return LinearHierarchy(vae, x, marginal.log_prob(x))


def affine(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return the map from v to ``weight`` v + ``bias``."""
    network = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        network.weight.copy_(weight)
        network.bias.copy_(bias)
    return network


def constant_scale(weight: Tensor, bias: Tensor, scale: float | Tensor) -> pv.DiagonalNormalPosterior:
    """Return N(``weight`` v + ``bias``, diag ``scale``^2)."""
    raw = 2 * (torch.as_tensor(scale, dtype=torch.float64).expand(len(bias)) - 1e-4).log()
    return pv.DiagonalNormalPosterior(affine(torch.cat([weight, torch.zeros_like(weight)]), torch.cat([bias, raw])))


def exact_posterior(weight: Tensor, bias: Tensor, loc: Tensor, covariance: Tensor, scale: float) -> nn.Module:
    """Return p(u|v) for u ~ N(loc, covariance), v ~ N(weight u + bias, scale^2 I)."""
    k = len(loc)
    posterior = (covariance.inverse() + weight.T @ weight / scale**2).inverse()
    gain = posterior @ weight.T / scale**2
    factor = torch.linalg.cholesky(posterior)
    rows, columns = torch.tril_indices(k, k, offset=-1)
    rest = torch.cat([2 * (factor.diagonal() - 1e-4).log(), factor[rows, columns]])
    shift = torch.cat([loc - gain @ (weight @ loc + bias), rest])
    return pv.MultivariateNormalPosterior(affine(torch.cat([gain, gain.new_zeros(len(rest), gain.shape[1])]), shift))


def estimates(weights: list[Tensor], biases: list[Tensor], scale: float) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return networks that give the maximum-likelihood estimate of each layer, and normals with its variance."""
    networks: list[nn.Module] = []
    posteriors: list[nn.Module] = []
    variance = torch.zeros((), dtype=torch.float64)
    for weight, bias in zip(weights, biases, strict=True):
        inverse = torch.linalg.pinv(weight)
        networks.append(affine(inverse, -inverse @ bias))
        variance = (scale**2 + variance) / weight.square().sum(0)
        k = len(inverse)
        identity, zeros = torch.eye(k, dtype=torch.float64), torch.zeros(k, dtype=torch.float64)
        if len(posteriors) == len(weights) - 1:  # the top layer's is its posterior: the prior is standard normal
            identity, variance = identity / (1 + variance), variance / (1 + variance)
        posteriors.append(constant_scale(identity, zeros, variance.sqrt()))
    return networks, posteriors
