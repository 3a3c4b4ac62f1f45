"""The Laplace, Student's t and beta likelihoods against Pyro's distributions and closed forms."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv

D, E = 2, 3
X = torch.tensor([0.2, 0.5, 0.9])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda f: pv.LaplaceLikelihood(f, scale=0.7), lambda f: dist.Laplace(f, 0.7)),
        (lambda f: pv.StudentTLikelihood(f, df=3.0, scale=0.7), lambda f: dist.StudentT(3.0, f, 0.7)),
        (
            lambda f: pv.BetaLikelihood(f, concentration=6.0),
            lambda f: dist.Beta(6 * f.sigmoid(), 6 * (1 - f.sigmoid())),
        ),
    ],
)
def test_the_density_is_that_of_the_family(make, expected) -> None:
    network, z = nn.Linear(D, E), torch.randn(5, D)
    torch.testing.assert_close(make(network)(z).log_prob(X.expand(5, 3)), expected(network(z)).log_prob(X).sum(-1))


def test_the_beta_likelihood_has_the_stated_moments() -> None:
    p = pv.BetaLikelihood(nn.Linear(D, E), concentration=4.0)(torch.randn(5, D))
    torch.testing.assert_close(p.variance, p.mean * (1 - p.mean) / 5)


@pytest.mark.parametrize("likelihood", [pv.LaplaceLikelihood, pv.StudentTLikelihood])
@pytest.mark.parametrize("scale", ["shared", "per-dimension", "predicted"])
def test_a_learned_scale_starts_at_the_deviation_of_the_data(likelihood, scale) -> None:
    network = nn.Linear(D, 2 * E if scale == "predicted" else E)
    part = likelihood(network, scale=scale)
    nn.init.zeros_(network.weight)
    x = torch.randn(500, E) * torch.tensor([0.2, 1.0, 3.0]) + 1.0
    part.initialize_output_bias(x)
    variance = x.var(0, correction=0)
    expected = variance.mean().expand(E) if scale == "shared" else variance
    torch.testing.assert_close(part(torch.zeros(D)).variance, expected, rtol=1e-3, atol=1e-3)


def test_a_learned_concentration_starts_at_the_variance_of_the_data() -> None:
    torch.manual_seed(0)
    x = dist.Beta(torch.tensor([1.0, 4.0, 2.0]), torch.tensor([3.0, 4.0, 0.5])).sample((20_000,)).clamp(1e-6, 1 - 1e-6)
    likelihood = pv.BetaLikelihood(nn.Linear(D, E), concentration="per-dimension")
    nn.init.zeros_(likelihood.network.weight)
    likelihood.initialize_output_bias(x)
    torch.testing.assert_close(likelihood(torch.zeros(D)).variance, x.var(0), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pv.StudentTLikelihood(nn.Linear(D, E), df=0.0), r"df: expected a finite number above 0, got 0.0"),
        (lambda: pv.StudentTLikelihood(nn.Linear(D, E), df=math.inf), r"df: expected a finite number above 0, got inf"),
        (lambda: pv.LaplaceLikelihood(nn.Linear(D, E), scale="wide"), r"scale: expected a number, .* got 'wide'"),
        (
            lambda: pv.BetaLikelihood(nn.Linear(D, E), concentration=-1.0),
            r"concentration: expected a finite number of at least min_concentration=0.01, .* got -1.0",
        ),
        (
            lambda: pv.BetaLikelihood(nn.Linear(D, E), min_concentration=0),
            r"min_concentration: expected a finite number above 0, got 0",
        ),
        (
            lambda: pv.NegativeBinomialLikelihood(nn.Identity()),
            r'event_shape: expected the shape of one datum for concentration="per-dimension"',
        ),
    ],
)
def test_bad_arguments_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
