"""The continuous Bernoulli against quadrature, at every logit; the bound on the logit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.likelihoods.continuous_bernoulli import ContinuousBernoulli


def test_the_density_of_constant_elements_is_bounded():
    """By the logit's bound L: log L a black pixel, whatever the network says."""
    likelihood = pv.ContinuousBernoulliLikelihood(nn.Linear(1, 2), max_logit=20.0)
    with torch.no_grad():
        likelihood.network.bias.copy_(torch.tensor([-1e6, 1e6]))
        likelihood.network.weight.zero_()
    log_prob = likelihood(torch.zeros(1)).log_prob(torch.tensor([0.0, 1.0]))
    assert log_prob.item() == pytest.approx(2 * math.log(20.0), rel=1e-5)
    with pytest.raises(ValueError, match=r"max_logit: expected a number above 0, got 0"):
        pv.ContinuousBernoulliLikelihood(nn.Linear(1, 2), max_logit=0)
    for wrong in (0, -1.0, math.nan, "30", True):
        with pytest.raises(ValueError, match=r"max_logit: expected a number above 0, got"):
            pv.ContinuousBernoulliLikelihood(nn.Linear(1, 2), max_logit=wrong)
    assert type(pv.ContinuousBernoulliLikelihood(nn.Linear(1, 2), max_logit=np.int64(20)).max_logit) is float


def test_the_output_bias_of_extreme_means_stays_within_the_bound():
    for max_logit in (30.0, math.inf):
        likelihood = pv.ContinuousBernoulliLikelihood(nn.Linear(1, 3), max_logit=max_logit)
        likelihood.initialize_output_bias(torch.tensor([[0.0, 1.0, 0.5]]))
        bias = likelihood.network.bias.detach()
        assert bias.isfinite().all()
        assert bias[2].abs() < 1e-3
        assert bias[1] == -bias[0]
        assert bias[1].item() == pytest.approx(100.0 if max_logit == math.inf else 30.0 * math.atanh(0.9), rel=1e-4)
    with pytest.raises(ValueError, match=r"x: expected values in \[0, 1\], got values from 0 to 255"):
        likelihood.initialize_output_bias(torch.tensor([[0.0, 1.0, 255.0]]))


@pytest.mark.parametrize("logit", [-300.0, -40.0, -3.0, -0.099, -1e-6, 0.0, 1e-3, 0.3, 17.0, 250.0])
def test_continuous_bernoulli_is_exact_at_every_logit(logit):
    """In float32, at logits where the clamped constant of torch loses up to 95 % of the mass."""
    likelihood = pv.ContinuousBernoulliLikelihood(nn.Linear(1, 1), max_logit=math.inf)
    with torch.no_grad():
        likelihood.network.weight.zero_()
        likelihood.network.bias.fill_(logit)
        p = likelihood(torch.zeros(1))
        # A grid that is dense at both ends, where the mass of extreme logits is.
        t = torch.linspace(-17, 17, 20_001, dtype=torch.float64)
        line = torch.sigmoid(t)
        density = p.log_prob(line.float()[:, None]).double().exp()
        # Beyond the grid the density is constant to rounding; the ends of [0, 1] carry what the sigmoid cuts off.
        mass = torch.trapezoid(density, line) + density[0] * line[0] + density[-1] * (1 - line[-1])
        mean = torch.trapezoid(density * line, line) + density[-1] * (1 - line[-1])
    assert mass.item() == pytest.approx(1.0, abs=1e-3)
    assert p.mean.item() == pytest.approx(mean.item(), abs=1e-3)


def test_continuous_bernoulli_gradients_agree_with_differences():
    logits = torch.tensor([-30.0, -2.0, -0.1001, -0.0999, -1e-4, 0.0, 0.05, 5.0], dtype=torch.float64).requires_grad_()
    x = torch.tensor(0.3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda eta: ContinuousBernoulli(logits=eta).log_prob(x), logits)
    # d/d eta log p(x) = x - E[x], so its zero-mean is the score identity.
    (gradient,) = torch.autograd.grad(ContinuousBernoulli(logits=logits).log_prob(x).sum(), logits)
    torch.testing.assert_close(gradient, x - ContinuousBernoulli(logits=logits).mean.detach(), rtol=1e-9, atol=1e-9)


def test_continuous_bernoulli_moments_and_divergence_are_integrals():
    logits = torch.tensor([-40.0, -3.0, -0.0999, -0.05, 0.0, 1e-3, 0.09, 0.2, 8.0, 30.0], dtype=torch.float64)
    p = ContinuousBernoulli(logits=logits)
    x = torch.linspace(0, 1, 200_001, dtype=torch.float64)[:, None]
    density = p.log_prob(x).exp()

    def expected(values):
        return torch.trapezoid(density * values, x, dim=0)

    torch.testing.assert_close(p.mean, expected(x), rtol=0, atol=1e-7)
    torch.testing.assert_close(p.variance, expected((x - p.mean) ** 2), rtol=1e-6, atol=0)
    torch.testing.assert_close(p.entropy(), expected(-p.log_prob(x)), rtol=0, atol=1e-6)
    q = ContinuousBernoulli(logits=torch.tensor(-1.0, dtype=torch.float64))
    kl = torch.distributions.kl_divergence(p, q.expand((10,)))
    torch.testing.assert_close(kl, expected(p.log_prob(x) - q.log_prob(x)), rtol=0, atol=1e-6)


def test_continuous_bernoulli_cdf_inverts_its_samples():
    p = ContinuousBernoulli(logits=torch.tensor([-50.0, -1.0, -5e-4, 0.0, 5e-4, 0.2, 30.0], dtype=torch.float64))
    u = torch.linspace(0.001, 0.999, 50, dtype=torch.float64)[:, None]
    torch.testing.assert_close(p.cdf(p.icdf(u)), u.expand(50, 7), rtol=0, atol=1e-7)
