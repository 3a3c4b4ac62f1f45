"""The scales of the Gaussian likelihood."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import pyro_vae as pv

D, E = 2, 3


@pytest.mark.parametrize("scale", ["shared", "per-dimension", "predicted"])
def test_learned_scale_cannot_run_off_to_zero(scale):
    likelihood = pv.GaussianLikelihood(nn.Linear(D, 2 * E if scale == "predicted" else E), scale=scale, min_scale=0.01)
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter.fill_(-1e4)
    p = likelihood(torch.ones(D))
    assert p.base_dist.scale.min() >= 0.01
    assert torch.isfinite(p.log_prob(p.mean))


def test_fixed_scale_is_the_one_given():
    p = pv.GaussianLikelihood(nn.Linear(D, E), scale=0.3)(torch.zeros(D))
    expected = -0.5 * E * math.log(2 * math.pi * 0.3**2)
    assert p.log_prob(p.mean).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("scale", ["shared", "per-dimension", "predicted"])
def test_a_learned_scale_starts_at_the_deviation_of_the_data(scale):
    network = nn.Linear(D, 2 * E if scale == "predicted" else E)
    likelihood = pv.GaussianLikelihood(network, scale=scale)
    nn.init.zeros_(network.weight)
    x = torch.randn(500, E) * torch.tensor([0.2, 1.0, 3.0]) + 1.0
    likelihood.initialize_output_bias(x)
    std = x.std(0, correction=0)
    expected = std.square().mean().sqrt().expand(E) if scale == "shared" else std
    found = likelihood(torch.zeros(D)).base_dist.scale.expand(E)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_per_dimension_scales_have_the_shape_of_one_datum():
    assert pv.GaussianLikelihood(nn.Linear(D, E), scale="per-dimension").scale.raw.shape == (E,)
    network = nn.Sequential(nn.Linear(D, 6), nn.Unflatten(-1, (2, 3)))
    assert pv.GaussianLikelihood(network, scale="per-dimension", event_shape=(2, 3)).scale.raw.shape == (2, 3)
    narrow = pv.GaussianLikelihood(nn.Linear(D, 1), scale="per-dimension", event_shape=(E,))
    with pytest.raises(ValueError, match=r"network: expected output of shape \(\*, 3\), event_shape being \(3,\)"):
        narrow(torch.zeros(4, D))  # one mean for three scales would broadcast


def test_images_with_predicted_scales_have_the_scales_in_further_channels():
    network = nn.Sequential(nn.Linear(D, 32), nn.Unflatten(-1, (2, 4, 4)))
    p = pv.GaussianLikelihood(network, scale="predicted", event_shape=(1, 4, 4))(torch.zeros(5, D))
    assert (p.batch_shape, p.event_shape) == ((5,), (1, 4, 4))
    assert torch.equal(p.mean, network(torch.zeros(5, D))[:, :1])


def test_numpy_numbers_are_numbers():
    likelihood = pv.GaussianLikelihood(nn.Linear(D, E), scale=np.float32(0.5), min_scale=np.float64(1e-3))
    assert (type(likelihood.scale.fixed), type(likelihood.scale.minimum)) == (float, float)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "shard"}, r"scale: expected a number, \"shared\".* 'shard'"),
        ({"scale": 0.0}, r"scale: expected a finite number of at least min_scale=0.001"),
        ({"scale": math.nan}, r"scale: expected a finite number of at least"),
        ({"scale": math.inf}, r"scale: expected a finite number of at least"),
        ({"scale": None}, r"scale: expected a finite number .* got None"),
        ({"scale": True}, r"scale: expected a finite number .* got True"),
        ({"min_scale": 0.0}, r"min_scale: expected a finite number above 0, got 0.0"),
        ({"min_scale": math.inf}, r"min_scale: expected a finite number above 0"),
        ({"min_scale": "small"}, r"min_scale: expected a finite number above 0"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        pv.GaussianLikelihood(nn.Linear(D, E), **options)


def test_networks_of_a_wrong_width_are_refused():
    with pytest.raises(ValueError, match=r"event_shape: expected the shape of one datum for scale=\"per-dimension\""):
        pv.GaussianLikelihood(nn.Identity(), scale="per-dimension")
    odd = pv.GaussianLikelihood(nn.Linear(D, E), scale="predicted")
    with pytest.raises(
        ValueError, match=r"expected output of shape \(\*, 2 \* E\) \(2 numbers for each .*\), got \(3,\)"
    ):
        odd(torch.zeros(D))
