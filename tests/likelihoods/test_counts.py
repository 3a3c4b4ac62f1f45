"""Counts and their exposures."""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import nn

import pyro_vae as pv
from tests.helpers import fit_pvalue, total_mass

D, E = 2, 3
COUNTS = {"poisson": pv.PoissonLikelihood, "negative binomial": pv.NegativeBinomialLikelihood}
each_kind = pytest.mark.parametrize("kind", COUNTS)


def test_poisson_is_pyros_at_the_rate_times_the_exposure() -> None:
    likelihood = pv.PoissonLikelihood(nn.Linear(D, E), exposure=1)
    z, exposure = torch.randn(5, D), torch.rand(5) * 10
    p = likelihood(z, "labels", exposure)
    rate = likelihood.network(z).exp() * exposure[:, None]
    x = p.sample()
    torch.testing.assert_close(p.log_prob(x), dist.Poisson(rate).log_prob(x).sum(-1))
    torch.testing.assert_close(p.variance, rate)


def test_negative_binomial_has_the_stated_moments_and_poisson_as_its_limit() -> None:
    z, exposure = torch.randn(5, D).double(), torch.rand(5).double() * 3
    likelihood = pv.NegativeBinomialLikelihood(nn.Linear(D, E), concentration=2.5, exposure=0).double()
    p = likelihood(z, exposure)
    mean = likelihood.network(z).exp() * exposure[:, None]
    torch.testing.assert_close(p.mean, mean)
    torch.testing.assert_close(p.variance, mean + mean**2 / 2.5)
    nearly = pv.NegativeBinomialLikelihood(likelihood.network, concentration=1e9, exposure=0)(z, exposure)
    x = torch.arange(15.0).double().reshape(5, 3)
    torch.testing.assert_close(nearly.log_prob(x), dist.Poisson(mean).log_prob(x).sum(-1), rtol=1e-5, atol=1e-5)


@each_kind
def test_exposures_for_each_element_and_for_particles(kind: str) -> None:
    likelihood = COUNTS[kind](nn.Linear(D, E), exposure=0)
    z, each = torch.randn(4, 5, D), torch.rand(5, E) + 0.1
    assert likelihood(z, each).batch_shape == (4, 5)
    torch.testing.assert_close(likelihood(z, each).mean, likelihood(z, torch.ones(5)).mean * each)
    images = COUNTS[kind](
        nn.Sequential(nn.Linear(D, 6), nn.Unflatten(-1, (1, 2, 3))), exposure=0, event_shape=(1, 2, 3)
    )
    torch.testing.assert_close(likelihood(z, each[:, :1]).mean, likelihood(z, each[:, 0]).mean)
    torch.testing.assert_close(images(z, each[:, :1]).mean, images(z, each[:, 0]).mean)
    one = images(z, torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert (one.batch_shape, one.event_shape) == ((4, 5), (1, 2, 3))
    torch.testing.assert_close(one.mean[:, 2], images(z, torch.ones(5)).mean[:, 2] * 3)


@each_kind
def test_density_and_samples_with_an_exposure(kind: str) -> None:
    likelihood = COUNTS[kind](nn.Linear(D, 1), exposure=0, event_shape=(1,)).double()
    p = likelihood(torch.zeros(D).double(), torch.tensor(4.0).double())
    assert total_mass(p) == pytest.approx(1.0, abs=1e-6)
    assert fit_pvalue(p) > 1e-3
    wrong = likelihood(torch.zeros(D).double(), torch.tensor(4.5).double())
    assert fit_pvalue(p, wrong.log_prob) < 1e-6


@each_kind
def test_the_output_bias_is_the_rate_per_exposure(kind: str) -> None:
    torch.manual_seed(0)
    exposure = torch.rand(5000) * 10 + 0.5
    rate = torch.tensor([0.2, 1.0, 3.0])
    x = dist.Poisson(exposure[:, None] * rate).sample()
    likelihood = COUNTS[kind](nn.Linear(D, E), exposure=0)
    likelihood.initialize_output_bias(x, exposure)
    torch.testing.assert_close(likelihood.network.bias.exp(), x.sum(0) / exposure.sum(), rtol=1e-4, atol=0)
    likelihood.initialize_output_bias(torch.zeros(10, E), exposure[:10])
    assert likelihood.network.bias.isfinite().all()


def test_a_learned_concentration_starts_at_the_dispersion_of_the_data() -> None:
    torch.manual_seed(0)
    x = dist.NegativeBinomial(torch.tensor([0.5, 2.0, 8.0]), logits=torch.zeros(3)).sample((20_000,))
    likelihood = pv.NegativeBinomialLikelihood(nn.Linear(D, E))
    likelihood.initialize_output_bias(x)
    torch.testing.assert_close(likelihood.concentration([]), torch.tensor([0.5, 2.0, 8.0]), rtol=0.15, atol=0)


def test_a_vae_of_counts_with_exposures_and_labels_finds_the_rates() -> None:
    """Exposures at one place and labels at another, without a subclass; in Pyro's SVI and captured."""
    torch.manual_seed(0)
    y = nn.functional.one_hot(torch.arange(200) % 2, 2).float()
    exposure = torch.rand(200) * 20 + 1
    rates = torch.tensor([[0.5, 2.0, 1.0], [2.0, 0.5, 1.0]])
    x = dist.Poisson(exposure[:, None] * (y @ rates)).sample()

    class Labelled(nn.Module):
        """A part that joins the labels alone to a function of its input."""

        def __init__(self, part: Any, function: Any = lambda input: input) -> None:
            super().__init__()
            self.part, self.function = part, function

        def forward(self, input: torch.Tensor, exposure: torch.Tensor, y: torch.Tensor) -> Any:
            joined = torch.cat([self.function(input), y.expand(*input.shape[:-1], 2)], -1)
            return self.part(joined, exposure, y)

    vae = pv.VAE(
        pv.StandardNormalPrior(D),
        Labelled(pv.PoissonLikelihood(nn.Linear(D + 2, E), exposure=0)),
        Labelled(pv.DiagonalNormalPosterior(nn.Linear(E + 2, 2 * D)), torch.log1p),
    )
    other = copy.deepcopy(vae)
    losses = []
    for kind, story, options in ((SVI, vae, {}), (pv.CompiledSVI, other, {"compile": "graph"})):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        svi = kind(story.model, story.guide, pv.Adam({"lr": 3e-2}), Trace_ELBO(), **options)
        losses.append([svi.step(x, exposure, y) for _ in range(10 if kind is SVI else 400)])
    assert losses[1][:10] == pytest.approx(losses[0], rel=1e-5)
    draws = Predictive(other.model, num_samples=500, parallel=True)(None, exposure[:2], y[:2])["x"]
    torch.testing.assert_close(draws.mean(0) / exposure[:2, None], rates, rtol=0.3, atol=0.1)


@each_kind
def test_bad_exposures_are_refused(kind: str) -> None:
    for wrong in (-1, 0.5, "first", True):
        with pytest.raises(ValueError, match=r"exposure: expected the position of the exposures .* got"):
            COUNTS[kind](nn.Linear(D, E), exposure=wrong)
    likelihood, z = COUNTS[kind](nn.Linear(D, E), exposure=1), torch.zeros(5, D)
    with pytest.raises(ValueError, match=r"given\[1\]: expected the exposures, got 1 values. Pass them after x"):
        likelihood(z, torch.ones(5))
    with pytest.raises(TypeError, match=r"given\[1\]: expected floating-point values .* got torch.int64"):
        likelihood(z, None, torch.ones(5).long())
    for value in (0.0, -1.0, math.nan):
        exposure = torch.ones(5)
        exposure[3] = value
        with pytest.raises(ValueError, match=rf"given\[1\]: expected exposures above 0, got {value:g}. Leave"):
            likelihood(z, None, exposure)
    with pytest.raises(
        ValueError, match=r"given\[1\]: expected exposures of shape \(B,\), \(B, 1\) or .* with E = \(3,\)"
    ):
        likelihood(z, None, torch.ones(5, 2))
