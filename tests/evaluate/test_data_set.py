"""Bounds over a whole set: the same numbers whatever the chunks, and the memory bound kept."""

from __future__ import annotations

import math

import pyro
import pytest
import torch

import pyro_vae as pv
from pyro_vae.evaluate import data_set


def test_whole_set_at_the_optimum_is_log_p_x(linear_gaussian):
    vae, x = linear_gaussian.vae, linear_gaussian.x
    for max_bytes in (1, 20_000, 2**28):
        elbo, iwae = pv.bounds(vae.model, vae.guide, x[:50], num_particles=7, max_bytes=max_bytes)
        torch.testing.assert_close(elbo, linear_gaussian.log_px[:50], rtol=0, atol=1e-4)
        torch.testing.assert_close(iwae, linear_gaussian.log_px[:50], rtol=0, atol=1e-4)
    assert torch.equal(
        pv.log_likelihood(vae.model, vae.guide, x, num_particles=1).isfinite(), torch.ones(len(x), dtype=torch.bool)
    )


def test_chunks_of_particles_are_joined_rightly(make_vae, binary_data, monkeypatch):
    """The weights cut into passes give what all of them give at once."""
    vae = make_vae()
    seen = []

    def remember(*args, **kwargs):
        log_w = pv.log_weights(*args, **kwargs)
        seen.append(log_w)
        return log_w

    monkeypatch.setattr(data_set, "log_weights", remember)
    monkeypatch.setattr(data_set, "_bytes_created", lambda *args: (0, 1))
    elbo, iwae = pv.bounds(vae.model, vae.guide, binary_data[:1], num_particles=10, max_bytes=4)
    assert [len(log_w) for log_w in seen] == [4, 4, 2]
    together = torch.cat(seen)
    torch.testing.assert_close(elbo, pv.elbo(together))
    torch.testing.assert_close(iwae, pv.iwae(together))


@pytest.mark.parametrize("num_particles", [1, 10, 200])
@pytest.mark.parametrize("large", ["encoder", "decoder"])
def test_memory_bound_is_kept(binary_data, monkeypatch, large, num_particles):
    width = {"encoder": 8, "decoder": 8, large: 1000}
    vae = pv.VAE(
        pv.StandardNormalPrior(2),
        pv.BernoulliLikelihood(pv.MLP(2, 6, hidden_dims=(width["decoder"],))),
        pv.DiagonalNormalPosterior(pv.MLP(6, 4, hidden_dims=(width["encoder"],))),
    )
    created = []

    def metered(*args, **kwargs):
        with data_set._CreatedBytes() as meter:
            log_w = pv.log_weights(*args, **kwargs)
        created.append(meter.total)
        return log_w

    measured = data_set._bytes_created(vae.model, vae.guide, binary_data[:1], {})
    monkeypatch.setattr(data_set, "_bytes_created", lambda *args: measured)
    monkeypatch.setattr(data_set, "log_weights", metered)
    x = binary_data.repeat(4, 1) if num_particles < 200 else binary_data[:6]
    pv.bounds(vae.model, vae.guide, x, num_particles=num_particles, max_bytes=300_000)
    fixed = 60_000  # weights' views and the like, which do not grow with data or particles
    assert max(created) < 300_000 + fixed
    assert max(created) > 300_000 / 4  # and the bound is made use of


def test_log_likelihood_is_the_importance_weighted_bound(make_vae, binary_data):
    vae = make_vae()
    with torch.no_grad():
        vae.posterior.network.output.bias[:2] += 1.0
    pyro.set_rng_seed(0)
    elbo, iwae = pv.bounds(vae.model, vae.guide, binary_data, num_particles=50)
    pyro.set_rng_seed(0)
    assert torch.equal(pv.log_likelihood(vae.model, vae.guide, binary_data, num_particles=50), iwae)
    assert (iwae > elbo).all()


def test_no_gradient_is_kept_and_the_measuring_pass_draws_nothing(make_vae, binary_data):
    vae = make_vae()
    pyro.set_rng_seed(0)
    bounds = pv.bounds(vae.model, vae.guide, binary_data, num_particles=3)
    assert not bounds.iwae.requires_grad
    pyro.set_rng_seed(0)
    expected = pv.log_weights(vae.model, vae.guide, binary_data, num_particles=3)
    torch.testing.assert_close(bounds.elbo, pv.elbo(expected))


def test_bad_arguments_are_refused(make_vae, binary_data):
    vae = make_vae()
    with pytest.raises(ValueError, match=r"x: expected data \(N, \*E\) with N >= 1, got shape \(0, 6\)"):
        pv.log_likelihood(vae.model, vae.guide, binary_data[:0])
    with pytest.raises(TypeError, match=r"x: expected a torch.Tensor, got list"):
        pv.log_likelihood(vae.model, vae.guide, [binary_data])
    with pytest.raises(ValueError, match=r"num_particles: expected an integer of at least 1, got 0"):
        pv.log_likelihood(vae.model, vae.guide, binary_data, num_particles=0)
    with pytest.raises(ValueError, match=r"max_bytes: expected an integer of at least 1, got -1"):
        pv.log_likelihood(vae.model, vae.guide, binary_data, max_bytes=-1)
    assert math.isfinite(pv.log_likelihood(vae.model, vae.guide, binary_data, num_particles=2).sum())
