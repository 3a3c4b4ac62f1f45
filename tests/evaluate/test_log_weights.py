"""Log-weights and bounds against closed forms."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch

import pyro_vae as pv


def test_log_weights_at_the_optimum_are_log_p_x(linear_gaussian):
    vae, x = linear_gaussian.vae, linear_gaussian.x
    log_w = pv.log_weights(vae.model, vae.guide, x, num_particles=8)
    assert log_w.shape == (8, len(x))
    torch.testing.assert_close(log_w, linear_gaussian.log_px.expand(8, -1), rtol=0, atol=1e-4)
    assert pv.elbo(log_w).mean().item() == pytest.approx(linear_gaussian.log_likelihood, abs=1e-4)
    assert pv.iwae(log_w).mean().item() == pytest.approx(linear_gaussian.log_likelihood, abs=1e-4)


def test_neither_beta_nor_size_changes_a_weight(linear_gaussian):
    vae, x = linear_gaussian.vae, linear_gaussian.x[:20]
    plain = pv.log_weights(vae.model, vae.guide, x)
    scaled = pv.log_weights(vae.model, vae.guide, x, beta=0.3, size=1000)
    torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-4)
    with poutine.scale(scale=7.0):
        torch.testing.assert_close(pv.log_weights(vae.model, vae.guide, x), plain, rtol=0, atol=1e-4)


def test_bounds_of_a_wrong_guide_are_the_closed_forms():
    """q(z|x) = N(0, 1) for the model z ~ N(0, 1), x ~ N(z, 1): ELBO and its particles' moments are known."""
    x = torch.tensor([-1.0, 0.0, 2.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    log_w = pv.log_weights(model, guide, x, num_particles=100_000)
    elbo = -0.5 * (math.log(2 * math.pi) + x**2 + 1)
    assert ((pv.elbo(log_w) - elbo).abs() < 4.5 * log_w.std(0) / math.sqrt(100_000)).all()
    exact = dist.Normal(0.0, math.sqrt(2.0)).log_prob(x)
    relative = log_w.exp().std(0) / log_w.exp().mean(0) / math.sqrt(100_000)
    assert ((pv.iwae(log_w) - exact).abs() < 4.5 * relative).all()


def test_importance_weighted_bound_rises_with_particles(make_vae, binary_data):
    vae = make_vae()
    with torch.no_grad():
        vae.posterior.network.output.bias[:2] += 1.0  # a poor guide
    log_w = pv.log_weights(vae.model, vae.guide, binary_data, num_particles=4096).detach()
    bounds = [pv.iwae(log_w.reshape(k, -1, 64).flatten(1)).mean().item() for k in (1, 8, 64, 4096)]
    assert bounds == sorted(bounds)
    assert bounds[0] == pytest.approx(pv.elbo(log_w).mean().item(), abs=1e-4)
    assert bounds[-1] > bounds[0] + 0.1


def test_log_weights_are_differentiable(make_vae, binary_data):
    vae = make_vae()
    pv.log_weights(vae.model, vae.guide, binary_data, num_particles=2).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in vae.parameters())


def test_a_global_latent_variable_is_refused(make_vae, binary_data):
    vae = make_vae()

    def with_global(function):
        def story(x):
            pyro.sample("temperature", dist.Normal(0.0, 1.0))
            return function(x)

        return story

    with pytest.raises(ValueError, match=r"'temperature' is global"):
        pv.log_weights(with_global(vae.model), with_global(vae.guide), binary_data)


@pytest.mark.parametrize("bound", [pv.elbo, pv.iwae])
def test_bounds_refuse_what_is_no_weight(bound):
    with pytest.raises(ValueError, match=r"log_weights: expected shape \(K, B\) with K >= 1 particles, got \(0, 3\)"):
        bound(torch.zeros(0, 3))
    with pytest.raises(TypeError, match=r"log_weights: expected a torch.Tensor, got list"):
        bound([[1.0]])
