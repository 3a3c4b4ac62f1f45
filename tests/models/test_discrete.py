"""Discrete latent variables against a sum over all their values, one by one."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, TraceEnum_ELBO, TraceGraph_ELBO
from torch import Tensor, nn

import pyro_vae as pv
from tests.helpers.stories import trains_alike

L, C = 2, 3
X = (torch.rand(5, 6, generator=torch.Generator().manual_seed(2)) < 0.5).float()


def small(*, baseline: bool = False, variables: int = L, **options: Any) -> pv.DiscreteVAE:
    width = 6 * (1 + options.get("missing", False))
    vae = pv.DiscreteVAE(
        pv.BernoulliLikelihood(pv.MLP(variables * C, 6, hidden_dims=(8,))),
        pv.MLP(width, variables * C, hidden_dims=(8,)),
        num_variables=variables,
        num_classes=C,
        baseline=pv.MLP(width, 1, hidden_dims=(4,)) if baseline else None,
        **{"exact": not baseline, **options},
    )
    with torch.no_grad():
        vae.prior.logits.normal_()
        for parameter in vae.likelihood.parameters():
            parameter.mul_(3.0)
    return vae


def exact() -> TraceEnum_ELBO:
    return TraceEnum_ELBO(max_plate_nesting=1)


def terms(vae: pv.DiscreteVAE, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x|z), log p(z) and log q(z|x) of every value of z, (C ** L, B) each, term by term."""
    log_q = vae.posterior.network(x).reshape(len(x), L, C).log_softmax(-1)
    log_pi = vae.prior.logits.log_softmax(-1)
    found = []
    for value in itertools.product(range(C), repeat=L):
        joined = torch.cat([torch.eye(C)[i] for i in value]).expand(len(x), -1)
        log_p_x = -nn.functional.binary_cross_entropy_with_logits(
            vae.likelihood.network(joined), x, reduction="none"
        ).sum(1)
        log_p_z = sum(log_pi[i, c] for i, c in enumerate(value))
        found.append((log_p_x, log_p_z.expand(len(x)), sum(log_q[:, i, c] for i, c in enumerate(value))))
    return tuple(torch.stack(part) for part in zip(*found, strict=True))


def mean_gradients(vae: pv.DiscreteVAE, copies: int, batches: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Of the score-function estimate: means over ``copies * batches`` draws, and their standard errors."""
    found: dict[str, list[Tensor]] = {}
    for seed in range(batches):
        pyro.set_rng_seed(seed)
        vae.zero_grad()
        TraceGraph_ELBO().loss_and_grads(vae.model, vae.guide, X.repeat(copies, 1))
        for name, parameter in vae.named_parameters():
            found.setdefault(name, []).append(parameter.grad / copies)
    stacked = {name: torch.stack(values) for name, values in found.items()}
    return {name: (values.mean(0), values.std(0) / batches**0.5) for name, values in stacked.items()}


# The truth -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("beta", "size"), [(1.0, None), (0.4, 20)])
def test_loss_and_gradients_are_the_sum_over_all_values(beta, size):
    vae = small()
    loss = exact().loss_and_grads(vae.model, vae.guide, X, beta=beta, size=size)
    found = {name: p.grad.clone() for name, p in vae.named_parameters()}
    vae.zero_grad()
    log_p_x, log_p_z, log_q = terms(vae, X)
    expected = -(log_q.exp() * (log_p_x + beta * (log_p_z - log_q))).sum() * (1 if size is None else size / 5)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in vae.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=2e-5)
        assert parameter.grad.abs().max() > 1e-3


def test_values_of_many_variables_are_all_summed():
    vae = small(variables=4)
    one = exact().loss(vae.model, vae.guide, X)
    assert one == exact().loss(vae.model, vae.guide, X)  # no draw, no noise
    z = torch.cartesian_prod(*[torch.arange(C)] * 4)
    q, p = vae.encode(X), vae.prior()
    assert q.log_prob(z[:, None]).exp().sum(0).allclose(torch.ones(5))
    cost = vae.decode(z[:, None]).log_prob(X) + p.log_prob(z)[:, None] - q.log_prob(z[:, None])
    assert one == pytest.approx(-(q.log_prob(z[:, None]).exp() * cost).sum().item(), rel=1e-5)


def test_weights_are_those_of_draws_and_average_to_p_x():
    vae = small()
    log_p_x, log_p_z, log_q = terms(vae, X)
    found = pv.log_weights(vae.model, vae.guide, X, num_particles=50)
    every = (log_p_x + log_p_z - log_q)[:, None]  # (values, 1, B)
    assert ((found - every).abs().min(0).values < 1e-4).all()
    log_w = pv.log_weights(vae.model, vae.guide, X, num_particles=10_000).detach()
    error = log_w.exp().std(0) / log_w.exp().mean(0) / 100
    assert ((pv.iwae(log_w) - (log_p_x + log_p_z).logsumexp(0)).abs() < 4.5 * error).all()
    elbo = (log_q.exp() * every[:, 0]).sum(0)
    assert ((log_w.mean(0) - elbo).abs() < 4.5 * log_w.std(0) / 100).all()


@pytest.mark.parametrize("baseline", [False, True])
def test_the_score_function_has_the_exact_gradient_in_the_mean(baseline):
    """Every element of every gradient, within 5 standard errors of 100,000 draws."""
    summed = small()
    drawn = small(baseline=baseline, exact=False)
    drawn.load_state_dict(summed.state_dict(), strict=False)
    exact().loss_and_grads(summed.model, summed.guide, X)
    estimates = mean_gradients(drawn, copies=1000, batches=100)
    compared = 0
    for name, parameter in summed.named_parameters():
        mean, error = estimates[name]
        assert ((mean - parameter.grad).abs() <= 5 * error + 1e-4).all(), name
        compared += parameter.numel()
    assert compared > 150


def test_the_baseline_takes_noise_away_and_starts_near():
    """And it is a function of x that learns, in the same steps, to predict the bound of a draw."""
    plain, with_baseline = small(exact=False), small(baseline=True)
    with_baseline.load_state_dict(plain.state_dict(), strict=False)
    with_baseline.initialize_baseline(X, num_particles=200)
    with torch.no_grad():
        predicted = with_baseline.baseline(X).mean()
    log_p_x, log_p_z, log_q = terms(plain, X)
    assert predicted.item() == pytest.approx((log_q.exp() * (log_p_x + log_p_z - log_q)).sum().item() / 5, abs=1.0)
    errors = []
    for vae in (plain, with_baseline):
        errors.append(mean_gradients(vae, copies=100, batches=40)["posterior.network.layers.2.weight"][1].norm())
    assert errors[1] < 0.6 * errors[0]


# Pyro and the engine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [False, True])
def test_captured_steps_are_pyros(baseline):
    def make() -> tuple[Any, Any]:
        vae = small(baseline=baseline)
        return vae.model, vae.guide

    def keywords(step: int) -> dict[str, Any]:
        return {"beta": torch.tensor((step + 1) / 8), "size": 20}

    assert trains_alike(make, TraceGraph_ELBO if baseline else exact, X, keywords=keywords) == 1


@pytest.mark.parametrize("baseline", [False, True])
def test_fit_and_resume(tmp_path, binary_data, baseline):
    """The baseline's parameters are in the checkpoints: with others the gradients would differ."""

    def run(directory, epochs, **options):
        pyro.clear_param_store()
        pyro.set_rng_seed(5)
        vae = small(baseline=baseline)
        svi = SVI(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), TraceGraph_ELBO() if baseline else exact())
        history = pv.fit(
            svi,
            binary_data.split(24),  # the last batch is smaller
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
    assert any(name.startswith("baseline") for name in vae.state_dict()) == baseline


@pytest.mark.slow
def test_both_train_to_the_same_bound(binary_data):
    """Three classes are enough for two patterns with a tenth of the elements flipped: -log 2 - 6 H(0.1) nats."""
    found = []
    for baseline in (False, True):
        pyro.set_rng_seed(1)
        vae = small(baseline=baseline, variables=1)
        loss = TraceGraph_ELBO() if baseline else exact()
        svi = pv.CompiledSVI(vae.model, vae.guide, pv.Adam({"lr": 2e-2}), loss, compile="graph")
        for _ in range(400):
            svi.step(binary_data)
        z = torch.arange(C)[:, None, None]
        log_joint = vae.decode(z).log_prob(binary_data) + vae.prior().log_prob(z)
        found.append(log_joint.logsumexp(0).mean().item())
    assert found[0] == pytest.approx(found[1], abs=0.1)
    assert min(found) > -math.log(2) + 6 * (0.1 * math.log(0.1) + 0.9 * math.log(0.9))


def test_predictive_and_samples_have_the_probabilities_of_the_prior():
    vae = small()
    draws = Predictive(vae.model, num_samples=20_000, parallel=True)()
    assert draws["z"].shape == (20_000, 1, L)
    z, probs = draws["z"][:, 0], vae.prior.logits.softmax(-1).detach()
    for i in range(L):
        share = torch.bincount(z[:, i], minlength=C) / len(z)
        assert ((share - probs[i]).abs() < 4.5 * (probs[i] * (1 - probs[i]) / len(z)).sqrt()).all()
    values = torch.cartesian_prod(*[torch.arange(C)] * L)
    mean = (vae.prior().log_prob(values).exp()[:, None] * vae.decode(values).mean).sum(0).detach()
    assert ((vae.sample(20_000).mean(0) - mean).abs() < 4.5 * (mean * (1 - mean) / 20_000).sqrt()).all()
    assert vae.sample(3, mean=True).shape == (3, 6)
    posterior = Predictive(vae.model, guide=vae.guide, num_samples=7, return_sites=["z", "x"])(X)
    assert posterior["z"].shape == (7, 5, L)
    assert torch.equal(posterior["x"][0], X)


def test_reconstructions():
    vae = small()
    mode = vae.posterior.network(X).reshape(5, L, C).argmax(-1)
    torch.testing.assert_close(vae.reconstruct(X), vae.decode(mode).mean.detach())
    values = torch.cartesian_prod(*[torch.arange(C)] * L)
    means = (vae.encode(X).log_prob(values[:, None]).exp()[..., None] * vae.decode(values).mean[:, None]).sum(0)
    torch.testing.assert_close(vae.reconstruct(X, num_particles=20_000), means.detach(), rtol=0, atol=0.02)


@pytest.mark.parametrize("baseline", [False, True])
def test_missing_elements_are_left_out(baseline):
    vae = small(missing=True, baseline=baseline)
    mask = torch.rand(X.shape) < 0.7
    x = X.masked_fill(~mask, math.nan)
    losses = []
    for given, named in ((x, {}), (X, {"mask": mask})):
        pyro.set_rng_seed(0)
        loss = TraceGraph_ELBO() if baseline else exact()
        losses.append(loss.loss_and_grads(vae.model, vae.guide, given, **named))
    assert losses[0] == losses[1]
    assert all(p.grad.isfinite().all() for p in vae.parameters())
    assert pv.impute(vae.model, vae.guide, x, num_particles=10).mean.isfinite().all()
    with pytest.raises(ValueError, match=r"x: expected finite values, got nan"):
        small().guide(x)


def test_what_is_given_reaches_the_likelihood():
    u = torch.randn(5, 2)
    likelihood = pv.Conditional(pv.BernoulliLikelihood(nn.Linear(L * C + 2, 6)))
    vae = pv.DiscreteVAE(likelihood, nn.Linear(6, L * C), num_variables=L, num_classes=C)
    assert math.isfinite(exact().loss(vae.model, vae.guide, X, u))
    assert vae.sample(5, u).shape == vae.reconstruct(X, u).shape == (5, 6)


def test_a_copy_and_a_state_dict_are_equal():
    first, second = small(baseline=True), small(baseline=True)
    second.load_state_dict(first.state_dict())
    for other in (second, copy.deepcopy(first)):
        assert torch.equal(other.reconstruct(X), first.reconstruct(X))
        assert torch.equal(other.baseline(X), first.baseline(X))


# Bad input -----------------------------------------------------------------------------------------------------------


def test_too_many_values_are_refused():
    parts = pv.BernoulliLikelihood(nn.Linear(20 * 2, 6)), nn.Linear(6, 20 * 2)
    with pytest.raises(
        ValueError, match=r"exact: expected at most 10,000 values of z .* got .* = 2 \*\* 20. .*exact=False"
    ):
        pv.DiscreteVAE(*parts, num_variables=20, num_classes=2)
    vae = pv.DiscreteVAE(*parts, num_variables=20, num_classes=2, exact=False)
    assert math.isfinite(TraceGraph_ELBO().loss(vae.model, vae.guide, X))
    with pytest.warns(UserWarning, match="no sample sites configured for enumeration"):
        exact().loss(vae.model, vae.guide, X)
    pv.DiscreteVAE(parts[0], nn.Linear(6, 4 * 10), num_variables=4, num_classes=10)  # 10,000


def test_parts_that_do_not_fit_are_refused():
    likelihood = pv.BernoulliLikelihood(nn.Linear(L * C, 6))
    numbers = {"num_variables": L, "num_classes": C}
    with pytest.raises(ValueError, match=r"network: expected an output width of 6, num_variables \* .* got 5"):
        pv.DiscreteVAE(likelihood, nn.Linear(6, 5), **numbers).guide(X)
    with pytest.raises(ValueError, match=r"baseline: expected None with exact=True"):
        pv.DiscreteVAE(likelihood, nn.Linear(6, 6), baseline=nn.Linear(6, 1), **numbers)
    for wrong in ({"network": None}, {"network": nn.Linear(6, 6), "baseline": 3, "exact": False}):
        with pytest.raises(TypeError, match=r"(network|baseline): expected a network, a torch.nn.Module, got"):
            pv.DiscreteVAE(likelihood, **numbers, **wrong)
    for name in numbers:
        with pytest.raises(ValueError, match=rf"{name}: expected an integer of at least 1, got 0"):
            pv.DiscreteVAE(likelihood, nn.Linear(6, 6), **{**numbers, name: 0})
    wide = pv.DiscreteVAE(likelihood, nn.Linear(6, 6), baseline=nn.Linear(6, 2), exact=False, **numbers)
    with pytest.raises(ValueError, match=r"baseline: expected an output of shape \(5, 1\), got \(5, 2\)"):
        TraceGraph_ELBO().loss_and_grads(wide.model, wide.guide, X)
    with pytest.raises(ValueError, match=r"baseline: expected a network whose bias can be set, got None"):
        small().initialize_baseline(X)
    with pytest.raises(ValueError, match=r"got shape \(0, 6\)"):
        small().guide(X[:0])


def test_particles_of_the_objective_share_the_baseline():
    """With the plate of particles: the mean of the gradients is that of single ones, and of the exact sum."""
    x = torch.ones(4, 6)
    vae = pv.DiscreteVAE(
        pv.BernoulliLikelihood(pv.MLP(2 * 3, 6, hidden_dims=())),
        pv.MLP(6, 2 * 3, hidden_dims=()),
        num_variables=2,
        num_classes=3,
        exact=False,
        baseline=pv.MLP(6, 1, hidden_dims=()),
    )
    particles = 4000
    found = []
    for elbo in (
        TraceGraph_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1),
        TraceGraph_ELBO(),
    ):
        pyro.set_rng_seed(0)
        vae.zero_grad()
        rows = x if elbo.num_particles > 1 else x.repeat(particles, 1)
        elbo.loss_and_grads(vae.model, vae.guide, rows)
        gradient = vae.posterior.network.layers[0].weight.grad
        found.append(gradient / (1 if elbo.num_particles > 1 else particles))
    torch.testing.assert_close(*found, atol=0.02, rtol=0.1)
