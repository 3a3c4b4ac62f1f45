"""What is given with the data: it reaches every part, in Pyro and in ours, and its rows are those of the data."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import ExpTransform
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import pyro_vae as pv
from tests import helpers

K, D, CLASSES = 2, 6, 3
SHIFTS = torch.tensor([[0.0] * D, [2.0] * D, [-1.0, 1.0] * (D // 2)])


class Recorder(nn.Module):
    """A part that keeps what it is called with."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.calls = part, []

    def forward(self, *args: Any) -> Any:
        self.calls.append(args)
        return self.part(*args)


def recorded() -> pv.VAE:
    vae = helpers.small_vae()
    return pv.VAE(*(Recorder(part) for part in (vae.prior, vae.likelihood, vae.posterior)))


def labels(n: int) -> torch.Tensor:
    return nn.functional.one_hot(torch.arange(n) % CLASSES, CLASSES).float()


def random_conditional_vae() -> pv.VAE:
    return pv.VAE(
        pv.StandardNormalPrior(K),
        pv.Conditional(pv.GaussianLikelihood(nn.Linear(K + CLASSES, D))),
        pv.Conditional(pv.DiagonalNormalPosterior(nn.Linear(D + CLASSES, 2 * K))),
    )


def solved_conditional_vae() -> tuple[pv.VAE, torch.Tensor, torch.Tensor, helpers.LinearGaussian]:
    """Return the solved linear-Gaussian model with a shift for each class, its data and labels, and itself."""
    solved = helpers.linear_gaussian()
    y = labels(len(solved.x))
    vae = random_conditional_vae()
    vae.prior = solved.vae.prior
    old_likelihood, likelihood = solved.vae.likelihood, vae.likelihood.part
    old_posterior, posterior = solved.vae.posterior, vae.posterior.part
    with torch.no_grad():
        likelihood.scale.raw.copy_(old_likelihood.scale.raw)
        likelihood.network.weight.copy_(torch.cat([old_likelihood.network.weight, SHIFTS.T], 1))
        likelihood.network.bias.copy_(old_likelihood.network.bias)
        weight = old_posterior.network.weight
        posterior.network.weight.copy_(torch.cat([weight, -weight @ SHIFTS.T], 1))
        posterior.network.bias.copy_(old_posterior.network.bias)
    return vae, solved.x + y @ SHIFTS, y, solved


def test_every_part_gets_all_that_is_given_in_order(binary_data):
    vae = recorded()
    y, exposure, constant = torch.ones(64, 1), torch.ones(64), 3.0
    given = (y, exposure, constant)

    def expect(prior: int, likelihood: int, posterior: int) -> None:
        for part, times in ((vae.prior, prior), (vae.likelihood, likelihood), (vae.posterior, posterior)):
            assert len(part.calls) == times
            for call in part.calls:
                seen = call[0 if part is vae.prior else 1 :]
                assert len(seen) == 3
                assert all(a is b for a, b in zip(seen, given, strict=True))
            part.calls.clear()

    vae.model(binary_data, *given)
    expect(1, 1, 0)
    vae.guide(binary_data, *given)
    expect(1, 0, 1)  # the first call of the posterior compares its event shape with the prior's
    vae.reconstruct(binary_data, *given)
    expect(0, 1, 1)
    vae.sample(64, *given)
    expect(1, 1, 0)
    vae.encode(binary_data, *given), vae.decode(torch.zeros(64, 2), *given)
    expect(0, 1, 1)
    SVI(vae.model, vae.guide, pyro.optim.Adam({}), Trace_ELBO()).step(binary_data, *given)
    expect(1, 1, 1)  # the prior is built once in a step


def test_parts_that_use_nothing_given_ignore_it(binary_data):
    vae = helpers.small_vae()
    for given in ((), (torch.ones(64, 5),), (torch.ones(64), "a word", None)):
        pyro.set_rng_seed(0)
        loss = Trace_ELBO().loss(vae.model, vae.guide, binary_data, *given)
        pyro.set_rng_seed(0)
        assert loss == Trace_ELBO().loss(vae.model, vae.guide, binary_data)
        assert torch.equal(vae.reconstruct(binary_data, *given), vae.reconstruct(binary_data))


def test_log_weights_of_the_solved_conditional_model_are_log_p_x_given_y():
    vae, x, y, solved = solved_conditional_vae()
    log_w = pv.log_weights(vae.model, vae.guide, x, y, num_particles=3)
    torch.testing.assert_close(log_w, solved.log_px.expand(3, -1), rtol=0, atol=2e-4)
    # The planted fault: labels of other data.
    wrong = pv.log_weights(vae.model, vae.guide, x, y.roll(1, 0))
    assert (wrong - solved.log_px).abs().mean() > 1.0


def test_a_subsampled_plate_scales_conditional_data():
    vae, x, y, _ = solved_conditional_vae()
    for loss in (Trace_ELBO(), Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)):
        whole = loss.loss(vae.model, vae.guide, x, y)
        parts = [
            loss.loss(vae.model, vae.guide, *pair, size=len(x)) for pair in zip(x.split(100), y.split(100), strict=True)
        ]
        assert sum(parts) / 5 == pytest.approx(whole, rel=1e-4)
    trace = poutine.trace(vae.model).get_trace(x[:10], y[:10], size=len(x))
    assert trace.nodes["x"]["scale"] == len(x) / 10


@pytest.mark.parametrize("kind", [pytest.param("pyro", marks=pytest.mark.slow), "compiled"])
def test_a_conditional_model_reaches_the_optimum(kind):
    _, x, y, solved = solved_conditional_vae()
    vae = random_conditional_vae()
    for lr, steps in ((5e-2, 500), (5e-3, 100)):
        args = (vae.model, vae.guide, pv.Adam({"lr": lr}), Trace_ELBO())
        svi = SVI(*args) if kind == "pyro" else pv.CompiledSVI(*args, compile="graph")
        for _ in range(steps):
            svi.step(x, y)
    elbo = pv.elbo(pv.log_weights(vae.model, vae.guide, x, y, num_particles=20)).mean().item()
    assert elbo == pytest.approx(solved.log_likelihood, rel=1e-2)
    wrong = pv.elbo(pv.log_weights(vae.model, vae.guide, x, y.roll(1, 0), num_particles=20)).mean().item()
    assert wrong < elbo - 1.0


def test_a_compiled_step_is_pyros_step_for_other_labels_too():
    _, x, y, _ = solved_conditional_vae()
    vae = random_conditional_vae()
    other = copy.deepcopy(vae)
    losses = []
    for kind, module in ((SVI, vae), (pv.CompiledSVI, other)):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        options = {"compile": "graph"} if kind is pv.CompiledSVI else {}
        svi = kind(module.model, module.guide, pv.Adam({"lr": 1e-2}), Trace_ELBO(), **options)
        batches = [(x[i : i + 50], y[i : i + 50].roll(i, 1)) for i in range(0, 500, 50)]
        losses.append([svi.step(*batch, size=len(x)) for batch in batches])
    assert losses[0] == losses[1]
    assert svi.captures == 1


def test_predictive_draws_for_the_labels_that_are_given():
    vae, _, y, solved = solved_conditional_vae()
    y = y[:3]
    for n, parallel in ((300, False), (3000, True)):
        draws = Predictive(vae.model, num_samples=n, parallel=parallel)(None, y)
        assert draws["x"].shape == (n, 3, D)
        expected = solved.x.mean(0) + SHIFTS
        error = (draws["x"].mean(0) - expected) / draws["x"].std(0) * math.sqrt(n)
        assert error.abs().max() < 4.5
    samples = vae.sample(3 * 1000, y.repeat(1000, 1)).unflatten(0, (1000, 3))
    error = (samples.mean(0) - expected) / samples.std(0) * math.sqrt(1000)
    assert error.abs().max() < 4.5
    posterior = Predictive(vae.model, guide=vae.guide, num_samples=5, return_sites=["z"])(solved.x[:3], y)
    assert posterior["z"].shape == (5, 3, K)


def test_a_prior_may_depend_on_what_is_given():
    """Any module that maps y to a distribution is a prior p(z|y)."""
    prior = pv.DiagonalNormalPosterior(nn.Linear(CLASSES, 2 * K))
    with torch.no_grad():
        prior.network.weight[:K] = torch.tensor([[0.0, 10.0, -10.0]])
    _, likelihood, posterior = random_conditional_vae().children()
    vae = pv.VAE(prior, likelihood, posterior)
    y = labels(6)
    trace = poutine.trace(vae.model).get_trace(None, y)
    z = trace.nodes["z"]["value"]
    assert z.shape == (6, K)
    assert (z[y[:, 1] == 1] > 4).all()
    assert (z[y[:, 2] == 1] < -4).all()
    assert vae.sample(6, y).shape == (6, D)
    x = vae.sample(6, y)
    svi = SVI(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), TraceMeanField_ELBO())
    before = copy.deepcopy(vae.state_dict())
    svi.step(x, y)
    assert all(not torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_how_many_data_are_drawn():
    vae = helpers.small_vae()
    assert vae.model().shape == (1, 6)
    assert vae.model(size=5).shape == (5, 6)
    assert vae.model(None, 2.0, torch.ones(4, 1)).shape == (4, 6)
    assert vae.model(None, torch.ones(4, 1), size=np.int64(4)).shape == (4, 6)
    with pytest.raises(
        ValueError, match=r"given\[1\]: expected 4 rows as in size, or in the first tensor given, got 3"
    ):
        vae.model(None, torch.ones(4, 1), torch.ones(3))
    with pytest.raises(ValueError, match=r"given\[0\]: expected 5 rows as in size"):
        vae.model(None, torch.ones(4, 1), size=5)


def test_a_likelihood_of_ones_own_may_say_nothing_of_its_shape(binary_data):
    vae = helpers.small_vae()

    class Own(nn.Module):
        def forward(self, z):
            return vae.likelihood(z)

    class OwnWithANumber(Own):
        event_shape = 6

    for likelihood in (Own(), OwnWithANumber(), vae.likelihood.forward):
        own = pv.VAE(vae.prior, likelihood, vae.posterior)
        assert own.model(binary_data).shape == (64, 6)


def test_another_number_of_rows_is_refused(binary_data):
    vae = helpers.small_vae()
    for given in (torch.ones(63, 1), torch.ones(1, 64), np.ones(3)):
        for function in (vae.model, vae.guide):
            with pytest.raises(
                ValueError, match=r"given\[1\]: expected 64 rows as in x, got .*. Give one for each datum"
            ):
                function(binary_data, 1.0, given, size=100)
    with pytest.raises(ValueError, match=r"given\[0\]: expected 7 rows as n, got 5"):
        vae.sample(7, torch.ones(5, 1))


def test_latent_variables_of_another_shape_than_the_prior_are_refused(binary_data):
    vae = helpers.small_vae()
    narrow = pv.VAE(pv.StandardNormalPrior(1), vae.likelihood, vae.posterior)  # log p(z) would broadcast
    for run in (
        lambda: SVI(narrow.model, narrow.guide, pyro.optim.Adam({}), Trace_ELBO()).step(binary_data),
        lambda: pv.log_weights(narrow.model, narrow.guide, binary_data, num_particles=3),
        lambda: narrow.reconstruct(binary_data),
    ):
        with pytest.raises(ValueError, match=r"posterior: expected q\(z\|x\) of event shape \(1,\), .* got \(2,\)"):
            run()
    narrow.prior = vae.prior
    narrow.reconstruct(binary_data)
    narrow.prior = pv.StandardNormalPrior(3)
    with pytest.raises(ValueError, match=r"posterior: expected q\(z\|x\) of event shape \(3,\), .* got \(2,\)"):
        copy.deepcopy(narrow).encode(binary_data)


def test_the_prior_is_not_built_to_compare_shapes_at_every_step(binary_data):
    vae = recorded()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    for _ in range(5):
        svi.step(binary_data)
    assert len(vae.prior.calls) == 6
    for part in vae.children():
        part.calls.clear()
    again = copy.deepcopy(vae)
    again.encode(binary_data)
    assert again.prior.calls == []


def test_parts_that_give_no_distribution_are_refused():
    vae = helpers.small_vae()
    with pytest.raises(TypeError, match=r"prior: expected a module whose forward returns a distribution, .* Tensor"):
        pv.VAE(lambda: torch.zeros(2), vae.likelihood, vae.posterior).sample()


class LogNormalPosterior(nn.Module):
    """A posterior whose mean is not known to its class."""

    def forward(self, x: torch.Tensor, *given: Any) -> Any:
        base = dist.Normal(x[..., :K], 0.5).to_event(1)
        return dist.TransformedDistribution(base, [ExpTransform()])


@pytest.mark.parametrize("num_particles", [None, 4000])
def test_reconstruction_without_a_posterior_mean_averages_draws(num_particles):
    likelihood = pv.GaussianLikelihood(nn.Linear(K, D))
    vae = pv.VAE(pv.StandardNormalPrior(K), likelihood, LogNormalPosterior())
    x = torch.randn(20, D)
    mean = (x[:, :K] + 0.5**2 / 2).exp()
    draws = torch.stack([vae.reconstruct(x, num_particles=num_particles) for _ in range(5)]).mean(0)
    count = 5 * (num_particles or 100)
    spread = (0.25**0.5 * 0.6 * mean.abs() * 3).sum(-1, keepdim=True) / math.sqrt(count)
    with torch.no_grad():
        assert ((draws - likelihood(mean).mean).abs() < 4.5 * spread * likelihood.network.weight.abs().max()).all()


def test_reconstruction_by_draws_is_the_posterior_average(linear_gaussian):
    vae, x = linear_gaussian.vae, linear_gaussian.x[:10]
    draws = vae.reconstruct(x, num_particles=20_000)
    error = vae.likelihood.network.weight.detach() * linear_gaussian.posterior_scale
    assert ((draws - vae.reconstruct(x)).abs() < 4.5 * error.norm(dim=1) / math.sqrt(20_000)).all()
    with pytest.raises(ValueError, match=r"num_particles: expected an integer of at least 1, got 0"):
        vae.reconstruct(x, num_particles=0)
