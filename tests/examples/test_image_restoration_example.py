"""The decoder as a prior: the example in its short form, and its posteriors against sums over noise levels."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import nn

import pyro_vae as pv

EXAMPLE = Path(__file__).parents[2] / "examples" / "image_restoration.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("image_restoration", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def linear_case():
    """A linear decoder of 12 pixels, of which 9 are seen, and two noisy images."""
    pyro.set_rng_seed(2)
    vae = pv.VAE(pv.StandardNormalPrior(2), pv.GaussianLikelihood(nn.Linear(2, 12)), nn.Identity())
    vae.requires_grad_(False)
    vae.likelihood.network.weight.normal_(0.0, 0.5)
    damage = torch.eye(12)[:9]
    z = torch.tensor([[1.0, -0.5], [0.2, 1.5]])
    y = vae.decode(z).mean @ damage.T + 0.2 * torch.randn(2, 9)
    return vae, damage, y


def exact_moments(vae, damage, y):
    """Means and standard deviations of noise and z given y, by a sum over a grid of noise levels."""
    weight, bias = (damage @ parameter for parameter in (vae.likelihood.network.weight, vae.likelihood.network.bias))
    noise = torch.linspace(math.log(0.02), math.log(3.0), 2000).exp()
    covariance = weight @ weight.T + noise[:, None, None] ** 2 * torch.eye(len(damage))
    log_p = dist.LogNormal(math.log(0.2), 0.5).log_prob(noise)[:, None] + noise.log()[:, None]  # an even grid of logs
    log_p = log_p + dist.MultivariateNormal(bias, covariance[:, None]).log_prob(y)
    p = log_p.softmax(0)  # (noise levels, images)
    precision = torch.eye(2) + weight.T @ weight / noise[:, None, None] ** 2
    variance = torch.linalg.inv(precision)
    mean = torch.einsum("kij,jl,nl->kni", variance, weight.T, y - bias) / noise[:, None, None] ** 2

    def moments(first, second):
        return first, (second - first**2).sqrt()

    of_noise = moments((p * noise[:, None]).sum(0), (p * noise[:, None] ** 2).sum(0))
    second = mean**2 + variance.diagonal(dim1=1, dim2=2)[:, None]
    of_z = moments((p[..., None] * mean).sum(0), (p[..., None] * second).sum(0))
    return {"noise": of_noise, "z": of_z}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["guide", "NUTS"])
def test_the_posterior_is_that_of_quadrature(example, method):
    vae, damage, y = linear_case()
    args = argparse.Namespace(draws=300, steps=1000)
    draws, start = example.by_guide(args, AutoMultivariateNormal, y, vae, damage)
    if method == "NUTS":
        draws = example.by_nuts(args, y, vae, damage, start=start)
    for site, (mean, sd) in exact_moments(vae, damage, y).items():
        error = (draws[site].mean(0) - mean) / sd
        assert error.abs().max() < 0.35, site
        assert ((draws[site].std(0) / sd) - 1).abs().max() < 0.25, site
    wrong = exact_moments(vae, damage, y.flip(0))  # the planted fault: the other image
    assert ((draws["z"].mean(0) - wrong["z"][0]) / wrong["z"][1]).abs().max() > 2


def test_the_damages_are_linear_maps(example):
    found = example.damages(4, 6)
    image = torch.rand(24)
    assert torch.equal(found["noise"] @ image, image)
    assert torch.equal(found["mask"] @ image, image.unflatten(0, (4, 6))[:, :3].flatten())
    blurred = found["blur"] @ image
    torch.testing.assert_close(found["blur"] @ torch.ones(24), torch.ones(24))
    assert blurred.std() < image.std() / 2


@pytest.mark.slow
def test_it_writes_metrics_and_a_picture(example, tmp_path):
    metrics = example.main(["--smoke", "--dataset", "digits", "--output-dir", str(tmp_path)])
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert (tmp_path / "restoration.png").stat().st_size > 1000
    assert list(metrics) == ["noise", "blur", "mask"]
    assert all(0 <= values["coverage_z"] <= 1 for found in metrics.values() for values in found.values())
