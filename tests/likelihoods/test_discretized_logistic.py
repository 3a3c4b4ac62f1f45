"""The discretized logistic likelihood: against the definition, its moments, its tails, its initialization."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.likelihoods.discretized_logistic import DiscretizedLogistic

LEVELS = torch.arange(256, dtype=torch.float64) / 255


def mixture(*shape: int) -> DiscretizedLogistic:
    generator = torch.Generator().manual_seed(0)
    loc = torch.rand(*shape, 3, generator=generator, dtype=torch.float64)
    scale = 0.02 + 0.1 * torch.rand(*shape, 3, generator=generator, dtype=torch.float64)
    logits = torch.randn(*shape, 3, generator=generator, dtype=torch.float64)
    return DiscretizedLogistic(loc, scale, logits, num_levels=256)


def test_probabilities_are_differences_of_the_distribution_function() -> None:
    p = mixture()
    inner, end = (torch.arange(255, dtype=torch.float64) + 0.5) / 255, torch.tensor([math.inf], dtype=torch.float64)
    edges = torch.cat([-end, inner, end])
    cdf = (torch.sigmoid((edges[:, None] - p.loc) / p.scale) * p.logits.softmax(-1)).sum(-1)
    torch.testing.assert_close(p.log_prob(LEVELS).exp(), cdf.diff(), rtol=1e-6, atol=1e-12)


def test_moments_are_those_of_the_levels() -> None:
    p = mixture(4)
    probs = p.log_prob(LEVELS[:, None]).exp()
    mean = (probs * LEVELS[:, None]).sum(0)
    torch.testing.assert_close(p.mean, mean)
    torch.testing.assert_close(p.variance, (probs * LEVELS[:, None] ** 2).sum(0) - mean**2)


def test_far_levels_keep_a_finite_log_probability_and_gradient_in_float32() -> None:
    loc = torch.tensor([[0.0]], requires_grad=True)
    scale = torch.tensor([[1e-3]], requires_grad=True)
    log_p = DiscretizedLogistic(loc, scale, num_levels=256).log_prob(torch.tensor([0.9, 1.0]))
    log_p.sum().backward()
    assert log_p.isfinite().all()
    assert log_p[0].item() == pytest.approx(-(0.9 - 0.5 / 255) / 1e-3, rel=1e-3)
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (loc, scale))


@pytest.mark.parametrize("num_components", [1, 3])
def test_the_output_bias_gives_the_mean_and_the_spread_of_the_data(num_components: int) -> None:
    x = (torch.randn(5000, 2) * 0.1 + torch.tensor([0.3, 0.6])).clamp(0, 1).mul(255).round() / 255
    parts = 2 if num_components == 1 else 9
    likelihood = pv.DiscretizedLogisticLikelihood(nn.Linear(2, parts * 2), num_components=num_components)
    likelihood.initialize_output_bias(x)
    nn.init.zeros_(likelihood.network.weight)
    p = likelihood(torch.zeros(2))
    torch.testing.assert_close(p.mean, x.mean(0), atol=0.01, rtol=0)
    ratio = p.variance.sqrt() / x.std(0)
    assert ((ratio > 0.9) & (ratio < 1.6)).all()


def test_images_and_eight_bit_pixels() -> None:
    pixels = torch.arange(256, dtype=torch.float32).reshape(1, 16, 16) / 255
    likelihood = pv.DiscretizedLogisticLikelihood(
        nn.Sequential(nn.Linear(2, 512), nn.Unflatten(-1, (2, 16, 16))), event_shape=(1, 16, 16)
    )
    assert likelihood(torch.zeros(3, 2)).log_prob(pixels).shape == (3,)
    with pytest.raises(ValueError, match="num_levels: expected at least 2, got 1"):
        pv.DiscretizedLogisticLikelihood(nn.Linear(2, 2), num_levels=1)
