"""A mixture with its cluster as a site, against a linear-Gaussian mixture and against the VAE with that prior."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, nn

import pyro_vae as pv
from tests.helpers.stories import trains_alike

K, D, E = 3, 2, 4
LOADINGS = torch.tensor([[1.0, 0.5], [0.3, -1.0], [0.2, 0.8], [-0.7, 0.1]]).double()
BIAS = torch.tensor([0.3, -0.2, 0.0, 1.0]).double()
NOISE = 0.4


class ExactPosterior(nn.Module):
    """p(z|x) = sum_y p(y|x) p(z|x, y) of the linear-Gaussian mixture."""

    def __init__(self, prior: pv.MixturePrior) -> None:
        super().__init__()
        self.mixture = prior

    def forward(self, x: Tensor, *given: Any) -> Any:
        loc, variance = self.mixture.loc, (2 * self.mixture.log_scale).exp()
        precision = torch.diag_embed(1 / variance) + LOADINGS.T @ LOADINGS / NOISE**2  # (K, D, D)
        covariance = torch.linalg.inv(precision)
        moments = (x[:, None] - BIAS) @ LOADINGS / NOISE**2 + loc / variance  # (B, K, D)
        means = (covariance @ moments[..., None])[..., 0]
        log_joint = log_joints(self.mixture, x)
        return dist.MixtureSameFamily(
            dist.Categorical(logits=log_joint), dist.MultivariateNormal(means, covariance.expand(len(x), -1, -1, -1))
        )


def log_joints(prior: pv.MixturePrior, x: Tensor) -> Tensor:
    """log p(x, y), (B, K): p(x|y) is normal."""
    covariance = LOADINGS @ torch.diag_embed((2 * prior.log_scale).exp()) @ LOADINGS.T
    covariance = covariance + NOISE**2 * torch.eye(E).double()
    p = dist.MultivariateNormal(prior.loc @ LOADINGS.T + BIAS, covariance)
    return prior.weights.logits.log_softmax(-1) + p.log_prob(x[:, None])


def solved() -> tuple[pv.MixtureVAE, Tensor, Tensor]:
    """The exact model, data, and log p(x, y)."""
    prior = pv.MixturePrior(D, K).double()
    likelihood = pv.GaussianLikelihood(nn.Linear(D, E), scale=NOISE).double()
    with torch.no_grad():
        prior.loc.copy_(torch.tensor([[-1.5, 0.0], [1.0, 1.5], [1.0, -1.0]]))
        prior.log_scale.copy_(torch.tensor([[0.1, -0.5], [-0.3, 0.2], [-0.8, 0.0]]))
        prior.weights.logits.copy_(torch.tensor([0.5, 0.0, -0.4]))
        likelihood.network.weight.copy_(LOADINGS)
        likelihood.network.bias.copy_(BIAS)
    vae = pv.MixtureVAE(prior, likelihood, ExactPosterior(prior))
    x = vae.sample(40)
    return vae, x, log_joints(prior, x).detach()


def small(**options: Any) -> pv.MixtureVAE:
    width = 6 * (1 + options.get("missing", False))
    return pv.MixtureVAE(
        pv.MixturePrior(D, K),
        pv.BernoulliLikelihood(pv.MLP(D, 6, hidden_dims=(8,))),
        pv.DiagonalNormalPosterior(pv.MLP(width, 2 * D, hidden_dims=(8,))),
        **options,
    )


def objective(**options: Any) -> TraceEnum_ELBO:
    return TraceEnum_ELBO(max_plate_nesting=1, **options)


# The truth -----------------------------------------------------------------------------------------------------------


def test_at_the_exact_posterior_every_weight_is_the_sum_of_normal_densities():
    vae, x, log_joint = solved()
    exact = log_joint.logsumexp(1)
    log_w = pv.log_weights(vae.model, vae.guide, x, num_particles=5).detach()
    torch.testing.assert_close(log_w, exact.expand(5, -1), rtol=0, atol=1e-9)
    elbo, iwae = pv.bounds(vae.model, vae.guide, x, num_particles=3)
    torch.testing.assert_close(elbo, exact)
    torch.testing.assert_close(iwae, exact)
    assert -objective().loss(vae.model, vae.guide, x) == pytest.approx(exact.sum().item(), rel=1e-9)
    with torch.no_grad():
        vae.prior.loc[0, 0] += 0.3  # the planted fault: the prior of another model than the posterior's
        vae.posterior.mixture = copy.deepcopy(vae.prior)
        vae.posterior.mixture.loc[0, 0] -= 0.3
    assert (pv.log_weights(vae.model, vae.guide, x) - exact).abs().max() > 1e-2


def test_cluster_probabilities_are_those_of_bayes_rule():
    vae, x, log_joint = solved()
    found = vae.cluster(x, num_particles=4000)
    exact = log_joint.softmax(1)
    assert ((found - exact).abs() < 4.5 * (exact * (1 - exact) / 4000).sqrt() + 1e-6).all()
    assert (1 - exact.max(1).values).max() > 0.05  # some data could be of another cluster


def test_a_guide_of_another_shape_is_bounded_by_log_p_x():
    vae, x, log_joint = solved()
    vae.posterior = pv.DiagonalNormalPosterior(nn.Linear(E, 2 * D)).double()
    exact = log_joint.logsumexp(1)
    elbo, iwae = pv.bounds(vae.model, vae.guide, x, num_particles=5000)
    assert (elbo < exact).all()
    log_w = pv.log_weights(vae.model, vae.guide, x, num_particles=5000).detach()
    error = log_w.exp().std(0) / log_w.exp().mean(0) / 5000**0.5
    assert ((iwae - exact).abs() < 5 * error + 1e-3).all()


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_loss_and_gradients_are_those_of_the_vae_with_this_prior(binary_data, beta):
    found = []
    mixture = small()
    plain = pv.VAE(mixture.prior, mixture.likelihood, mixture.posterior)
    for vae, loss in ((mixture, objective()), (plain, Trace_ELBO())):
        pyro.set_rng_seed(1)
        vae.zero_grad()
        value = loss.loss_and_grads(vae.model, vae.guide, binary_data, beta=beta, size=100)
        found.append((value, [p.grad.clone() for p in vae.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_drawn_cluster_has_the_same_bound(binary_data):
    """Whatever y is drawn, log p(y, z) - log p(y|z) is log p(z)."""
    vae = small()
    pyro.set_rng_seed(1)
    summed = objective().loss(vae.model, vae.guide, binary_data)
    pyro.set_rng_seed(1)
    with pytest.warns(UserWarning, match="you need to use TraceEnum_ELBO instead"):
        assert Trace_ELBO().loss(vae.model, vae.guide, binary_data) == pytest.approx(summed, rel=1e-6)
    with pytest.raises(ValueError, match=r"site 'y': Categorical has no reparameterised sampler"):
        pv.TraceIWAE_ELBO(3).loss_and_grads(vae.model, vae.guide, binary_data)


def test_training_finds_the_clusters():
    generator = torch.Generator().manual_seed(1)
    truth = torch.randint(K, (300,), generator=generator)
    centers = 3.0 * torch.eye(K, E)
    x = centers[truth] + 0.7 * torch.randn(300, E, generator=generator)
    vae = pv.MixtureVAE(
        pv.MixturePrior(D, K),
        pv.GaussianLikelihood(pv.MLP(D, E, hidden_dims=(16,))),
        pv.DiagonalNormalPosterior(pv.MLP(E, 2 * D, hidden_dims=(16,))),
    )
    with torch.no_grad():
        vae.prior.loc.copy_(2.0 * torch.tensor([[0.0, 1.0], [0.9, -0.5], [-0.9, -0.5]]))
    svi = pv.CompiledSVI(vae.model, vae.guide, pv.Adam({"lr": 2e-2}), objective(), compile="graph")
    for _ in range(300):
        svi.step(x)
    found = vae.cluster(x).argmax(1)
    best = max((torch.tensor(order)[found] == truth).float().mean() for order in itertools.permutations(range(K)))
    assert best > 0.95


# Pyro and the engine -------------------------------------------------------------------------------------------------


def test_captured_steps_are_pyros(binary_data):
    def make() -> tuple[Any, Any]:
        vae = small()
        return vae.model, vae.guide

    def keywords(step: int) -> dict[str, Any]:
        return {"beta": torch.tensor((step + 1) / 8), "size": 100}

    assert trains_alike(make, objective, binary_data, keywords=keywords) == 1
    assert trains_alike(make, lambda: objective(num_particles=3, vectorize_particles=True), binary_data) == 1


def test_the_sites_of_the_story(binary_data):
    vae = small()
    trace = poutine.trace(vae.guide).get_trace(binary_data)
    assert [name for name in trace.stochastic_nodes if name != "data"] == ["z", "y"]
    trace = poutine.trace(vae.model).get_trace(binary_data, size=100)
    assert [name for name in trace.stochastic_nodes if name != "data"] == ["y", "z"]
    assert trace.nodes["x"]["scale"] == 100 / 64
    assert {name for name, _ in vae.named_parameters()} == {name.split("$$$")[1] for name in trace.param_nodes}
    posterior = Predictive(vae.model, guide=vae.guide, num_samples=7)(binary_data)
    assert posterior["y"].shape == (7, 64)
    assert Predictive(vae.model, num_samples=7, parallel=True)(size=5)["x"].shape == (7, 5, 6)


def test_fit_and_resume(tmp_path, binary_data):
    def run(directory, epochs, **options):
        pyro.clear_param_store()
        pyro.set_rng_seed(5)
        vae = small()
        svi = SVI(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), objective())
        history = pv.fit(
            svi,
            binary_data.split(32),
            epochs=epochs,
            validation=[binary_data],
            progress=False,
            schedules={"beta": pv.linear_warmup(2)},
            callbacks=[pv.Checkpoint(directory)],
            **options,
        )
        return vae, history

    whole, history = run(tmp_path / "whole", 4)
    run(tmp_path / "other", 2)
    vae, again = run(tmp_path / "other", 4, resume=tmp_path / "other")
    assert again["train_elbo"] == history["train_elbo"]
    for name, value in vae.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_samples_of_a_cluster_have_its_moments():
    vae, _, _ = solved()
    expected = (vae.prior.loc @ LOADINGS.T + BIAS).detach()
    for y in range(K):
        x = vae.sample(20_000, y=y)
        assert ((x.mean(0) - expected[y]).abs() < 4.5 * x.std(0) / 20_000**0.5).all()
    x = vae.sample(20_000, y=torch.full((20_000,), -1))
    mixed = vae.prior.weights.logits.softmax(0).detach() @ expected
    assert ((x.mean(0) - mixed).abs() < 4.5 * x.std(0) / 20_000**0.5).all()
    assert vae.sample(3, y=1, mean=True).shape == vae.sample(3, mean=True).shape == (3, E)


def test_other_mixtures_and_what_is_given(binary_data):
    base = small()
    u = torch.randn(64, 2)
    conditional = pv.MixtureVAE(pv.MixturePrior(D, K, network=nn.Linear(2, K)), base.likelihood, base.posterior)
    vamp = pv.MixtureVAE(pv.VampPrior(base.posterior, binary_data[:5]), base.likelihood, base.posterior)
    for vae, given in ((conditional, (u,)), (vamp, ())):
        plain = pv.VAE(vae.prior, vae.likelihood, vae.posterior)
        losses = []
        for one, loss in ((vae, objective()), (plain, Trace_ELBO())):
            pyro.set_rng_seed(1)
            losses.append(loss.loss(one.model, one.guide, binary_data, *given))
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        assert vae.cluster(binary_data, *given).sum(1).allclose(torch.ones(64))
        assert vae.sample(64, *given, y=torch.arange(64) % K).shape == (64, 6)
        assert vae.reconstruct(binary_data, *given).shape == (64, 6)


def test_missing_elements_are_left_out(binary_data):
    vae = small(missing=True)
    mask = torch.rand(binary_data.shape) < 0.7
    x = binary_data.masked_fill(~mask, math.nan)
    losses = []
    for given, named in ((x, {}), (binary_data, {"mask": mask})):
        pyro.set_rng_seed(0)
        losses.append(objective().loss_and_grads(vae.model, vae.guide, given, **named))
    assert losses[0] == losses[1]
    assert vae.cluster(x).isfinite().all()
    assert pv.impute(vae.model, vae.guide, x, num_particles=10).mean.isfinite().all()
    with pytest.raises(ValueError, match=r"x: expected finite values, got nan"):
        small().guide(x)


# Bad input -----------------------------------------------------------------------------------------------------------


def test_priors_that_are_no_mixture_are_refused(binary_data):
    vae = small()
    for prior, got in (
        (pv.StandardNormalPrior(D), "Independent"),
        (lambda: dist.MixtureSameFamily(dist.Categorical(torch.ones(K)), dist.Normal(torch.zeros(K), 1.0)), "Mixture"),
    ):
        other = pv.MixtureVAE(prior, vae.likelihood, vae.posterior)
        with pytest.raises(ValueError, match=rf"prior: expected a mixture \(MixtureSameFamily\) .* got {got}"):
            other.model(binary_data)
    many = pv.MixtureVAE(pv.MixturePrior(D, 10_001), vae.likelihood, vae.posterior)
    with pytest.raises(ValueError, match=r"components: expected at most 10,000, since every value .* got 10,001"):
        many.guide(binary_data)


def test_bad_clusters_are_refused(binary_data):
    vae = small()
    with pytest.raises(ValueError, match=r"y: expected class numbers from 0 to 2, or -1 for unknown, got 3"):
        vae.sample(5, y=3)
    with pytest.raises(TypeError, match=r"y: expected class numbers \(torch.int64\), got torch.float32"):
        vae.sample(5, y=torch.zeros(5))
    with pytest.raises(ValueError, match=r"y: expected 5 rows as n, got 4"):
        vae.sample(5, y=torch.zeros(4).long())
    with pytest.raises(ValueError, match=r"num_particles: expected an integer of at least 1, got 0"):
        vae.cluster(binary_data, num_particles=0)


def test_the_cluster_of_all_samples_is_a_number_on_any_device():
    vae = small()
    pyro.set_rng_seed(0)
    one = vae.sample(5, y=np.int64(2), mean=True)
    pyro.set_rng_seed(0)
    assert torch.equal(one, vae.sample(5, y=torch.full((5,), 2), mean=True))
    with pyro.validation_enabled(False):
        assert vae.to("meta").sample(5, y=2).device.type == "meta"
