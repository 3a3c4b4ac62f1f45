"""Parts whose parameters are random, against linear regression in closed form and NUTS over weights and z together."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor, nn

import pyro_vae as pv
from tests.helpers.stories import trains_alike

N, D = 60, 3
NOISE = 0.5


def data(n: int = N) -> tuple[Tensor, Tensor]:
    """z, of mean zero, and x = a line of z plus noise of standard deviation NOISE."""
    generator = torch.Generator().manual_seed(1)
    z = 0.7 * torch.randn(n, 1, generator=generator)
    z = z - z.mean()  # slope and bias are then independent in the posterior
    line = z @ torch.tensor([[1.5, -1.0, 0.3]]) + torch.tensor([0.2, 0.0, -0.4])
    return z, line + NOISE * torch.randn(n, D, generator=generator)


def linear_parts(posterior: nn.Module | None = None, **options: Any) -> tuple[pv.VAE, Any]:
    """A VAE with a Bayesian linear decoder, and its model with the weights drawn before the plate."""
    likelihood = pv.Bayesian(pv.GaussianLikelihood(nn.Linear(1, D), scale=NOISE), **options)
    posterior = posterior or pv.DiagonalNormalPosterior(nn.Linear(D, 2))
    vae = pv.VAE(pv.StandardNormalPrior(1), likelihood, posterior)
    return vae, pv.with_globals(vae.model, likelihood.sample_parameters)


def kind(likelihood: pv.Bayesian, make: Any = AutoNormal) -> Any:
    return lambda model: make(model, init_loc_fn=likelihood.init_to_parameters, init_scale=0.1)


def parameters(vae: pv.VAE, draws: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the likelihood takes, from a guide's draws."""
    return poutine.condition(vae.likelihood.sample_parameters, data=draws)()


def regression(z: Tensor, x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The exact p(slope, bias | z, x): means (2, D) and covariance (2, 2), the same for each of the D elements."""
    inputs = torch.cat([z, torch.ones_like(z)], 1).double()
    covariance = torch.linalg.inv(torch.eye(2).double() / scale**2 + inputs.T @ inputs / NOISE**2)
    return covariance @ inputs.T @ x.double() / NOISE**2, covariance


def test_given_z_the_posterior_is_that_of_linear_regression_also_away_from_the_data() -> None:
    """The standard deviation of E[x|z, w] over w grows with the distance of z from the data, as in the closed form."""
    z, x = data()
    scale = 2.0
    pyro.set_rng_seed(0)
    vae, story = linear_parts(scale=scale)
    model = poutine.condition(story, {"z": z})
    guide = pv.AutoGlobalGuide(model, lambda x: None, kind(vae.likelihood))
    optim = pv.Adam({"lr": 0.1}, scheduler=lambda adam: torch.optim.lr_scheduler.ExponentialLR(adam, 0.98))
    svi = pv.CompiledSVI(model, guide, optim, pv.TraceSTL_ELBO(), compile="graph")
    for _ in range(250):
        svi.step(x)
    with torch.no_grad():
        draws = [guide.global_guide(x) for _ in range(500)]
        points = torch.tensor([0.0, 1.0, 4.0])
        means = torch.stack([vae.decode(points[:, None], parameters(vae, draw)).mean for draw in draws])
    mean, covariance = regression(z, x, scale)
    inputs = torch.stack([points, torch.ones(3)], 1).double()
    exact = (inputs @ covariance * inputs).sum(1).sqrt()
    assert exact[2] > 4 * exact[0]
    torch.testing.assert_close(means.std(0).double(), exact[:, None].expand(3, D), rtol=0.12, atol=0)
    assert ((means.mean(0) - inputs @ mean) / exact[:, None]).abs().max() < 0.2


def small_network(prior_scale: float) -> tuple[pv.VAE, Any]:
    """A decoder with two hidden units, whose weights have a narrow prior around other values than those of the data."""
    pyro.set_rng_seed(4)
    network = pv.MLP(1, D, hidden_dims=(2,), activation=nn.Tanh)
    likelihood = pv.Bayesian(
        pv.GaussianLikelihood(network, scale=1.0),
        prior=lambda name, value: dist.Normal(value, prior_scale).to_event(value.ndim),
    )
    vae = pv.VAE(pv.StandardNormalPrior(1), likelihood, pv.DiagonalNormalPosterior(pv.MLP(D, 2, hidden_dims=(8,))))
    return vae, pv.with_globals(vae.model, likelihood.sample_parameters)


@pytest.mark.slow
def test_weights_and_z_agree_with_nuts() -> None:
    """q(w) of full covariance beside q(z|x). They are independent, so that what multiplies z comes out too certain."""
    _, x = data(20)
    vae, model = small_network(prior_scale=0.3)
    guide = pv.AutoGlobalGuide(model, vae.guide, kind(vae.likelihood, AutoMultivariateNormal))
    optim = pv.Adam({"lr": 0.03}, scheduler=lambda adam: torch.optim.lr_scheduler.ExponentialLR(adam, 0.997))
    svi = pv.CompiledSVI(model, guide, optim, pv.TraceSTL_ELBO(), compile="graph")
    for _ in range(1500):
        svi.step(x)
    with torch.no_grad():
        draws = [{**guide.global_guide(x), "z": vae.guide(x)} for _ in range(1000)]
    kernel = NUTS(model, init_strategy=vae.likelihood.init_to_parameters, max_tree_depth=5)
    mcmc = MCMC(kernel, num_samples=200, warmup_steps=100, disable_progbar=True)
    mcmc.run(x)
    for name, exact in mcmc.get_samples().items():
        ours = torch.stack([draw[name] for draw in draws])
        error = ((ours.mean(0) - exact.mean(0)) / exact.std(0)).abs().max().item()
        ratio = ours.std(0) / exact.std(0)
        assert error < 0.5, (name, error)
        assert ratio.min() > (0.6 if name.endswith("layers.0.weight") else 0.75), (name, ratio)
        assert ratio.max() < 1.3, (name, ratio)


def test_mini_batches_weigh_the_prior_of_the_weights_once() -> None:
    """With z a function of x, the losses of the batches have the mean of the whole data's loss, for the same w."""
    _, x = data()
    vae, model = linear_parts(pv.DeltaPosterior(nn.Linear(D, 1)))
    guide = pv.AutoGlobalGuide(model, vae.guide, kind(vae.likelihood))
    guide(x)

    def loss(rows: Tensor, **options: Any) -> float:
        pyro.set_rng_seed(0)
        return Trace_ELBO().loss(model, guide, rows, **options)

    whole = loss(x)
    batches = [loss(rows, size=N) for rows in x.split(20)]
    assert sum(batches) / 3 == pytest.approx(whole, rel=1e-5)
    counted_thrice = sum(loss(rows) for rows in x.split(20))
    assert abs(counted_thrice - whole) > 1.0  # without size=, the prior of w counts once a batch


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO])
def test_a_step_is_captured_and_equal(objective: Any) -> None:
    def make() -> tuple[Any, Any]:
        vae, model = small_network(1.0)
        return model, pv.AutoGlobalGuide(model, vae.guide, kind(vae.likelihood))

    assert trains_alike(make, objective, data()[1]) == 1


def test_a_run_is_resumed_exactly(tmp_path: Any) -> None:
    _, x = data()

    def train(epochs: int, directory: str, **options: Any) -> dict[str, Tensor]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        vae, model = linear_parts()
        guide = pv.AutoGlobalGuide(model, vae.guide, kind(vae.likelihood))
        svi = SVI(model, guide, pv.Adam({"lr": 0.02}), Trace_ELBO())
        callbacks = [pv.Checkpoint(tmp_path / directory, keep_best=False)]
        batches = pv.data.Batches(x, batch_size=20, shuffle=True)
        pv.fit(svi, batches, epochs=epochs, size=N, callbacks=callbacks, progress=False, **options)
        return {**guide.state_dict(), **vae.state_dict()}

    whole = train(4, "whole")
    train(2, "parts")
    resumed = train(4, "parts", resume=tmp_path / "parts")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_bounds_given_a_draw_of_the_weights() -> None:
    _, x = data()
    pyro.set_rng_seed(0)
    vae, model = linear_parts()
    guide = pv.AutoGlobalGuide(model, vae.guide)
    draws = guide(x)
    w = parameters(vae, draws)
    weight, bias = w["network.weight"], w["network.bias"]
    exact = dist.MultivariateNormal(bias, weight @ weight.T + NOISE**2 * torch.eye(D)).log_prob(x).mean().item()
    bounds = [
        pv.bounds(lambda x: vae.model(x, w), vae.guide, x, num_particles=3000),
        pv.bounds(poutine.condition(model, draws), vae.guide, x, num_particles=3000),  # the same, slower
    ]
    for found in bounds:
        assert found.iwae.mean().item() == pytest.approx(exact, abs=0.02)
        assert found.elbo.mean().item() < exact - 0.1
    with pytest.raises(ValueError, match=r"likelihood\.network"):
        pv.log_weights(model, guide, x)


def test_the_default_prior_and_prior_draws() -> None:
    likelihood = pv.Bayesian(pv.BernoulliLikelihood(pv.MLP(50, D, hidden_dims=(7,))), scale=3.0)
    pyro.set_rng_seed(0)
    w = [likelihood.sample_parameters() for _ in range(200)]
    for name, inputs in {"network.layers.0.weight": 50, "network.layers.0.bias": 1}.items():
        stacked = torch.stack([draw[name] for draw in w])
        assert stacked.std().item() == pytest.approx(3.0 / inputs**0.5, rel=0.05)
    _, model = linear_parts()
    draws = Predictive(model, num_samples=5)(None, size=4)
    assert draws["x"].shape == (5, 4, D)
    assert draws["likelihood.network.weight"].shape == (5, 1, D, 1)  # Pyro's, with the plate's dimension


def test_some_parameters_stay_points_and_two_parts_may_be_bayesian() -> None:
    """A prior of None leaves a parameter to be learned; frozen ones stay; names keep the sites of two parts apart."""
    points = {"scale.raw"}
    likelihood = pv.Bayesian(
        pv.GaussianLikelihood(nn.Linear(1, D), scale="shared"),
        prior=lambda name, value: None if name in points else dist.Normal(value, 1.0).to_event(value.ndim),
    )
    vae = pv.VAE(pv.StandardNormalPrior(1), likelihood, pv.DiagonalNormalPosterior(nn.Linear(D, 2)))
    model = pv.with_globals(vae.model, likelihood.sample_parameters)
    trace = poutine.trace(model).get_trace(data()[1])
    assert {name for name in trace.nodes if name.startswith("likelihood")} == {
        "likelihood.network.weight",
        "likelihood.network.bias",
    }
    assert [name for name, site in trace.nodes.items() if site["type"] == "param" and "likelihood" in name] == [
        "vae$$$likelihood.part.scale.raw"
    ]
    # The starting values are those of the part, which initialize_output_bias may set.
    likelihood.initialize_output_bias(data()[1])
    guide = pv.AutoGlobalGuide(model, vae.guide, kind(likelihood))
    guide(data()[1])
    assert torch.equal(guide.median(data()[1])["likelihood.network.bias"], likelihood.part.network.bias)


def test_refused_with_a_reason() -> None:
    part = pv.GaussianLikelihood(nn.Linear(1, D), scale=1.0)
    with pytest.raises(TypeError, match="part: expected a likelihood or prior"):
        pv.Bayesian(lambda z: z)
    with pytest.raises(ValueError, match="scale: expected a finite number above 0, got -1"):
        pv.Bayesian(part, scale=-1)
    with pytest.raises(ValueError, match=r"event shape \(3, 1\) for network.weight, got Normal"):
        pv.Bayesian(part, prior=lambda name, value: dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="got none that does"):
        pv.Bayesian(pv.GaussianLikelihood(nn.Linear(1, D).requires_grad_(False), scale=1.0))
    likelihood = pv.Bayesian(part)
    with pytest.raises(TypeError, match=r"dictionary with network.weight, network.bias, got NoneType"):
        likelihood()
    with pytest.raises(TypeError, match="got Tensor"):
        likelihood(torch.zeros(2, 1))
    with pytest.raises(TypeError, match=r"got \['w'\]"):
        likelihood(torch.zeros(2, 1), {"w": torch.zeros(())})
    vae, model = linear_parts()
    guide = pv.AutoGlobalGuide(model, vae.guide)
    elbo = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    with pytest.raises(ValueError, match=r"of shape \(3, 1\), got \(3, 1, 3, 1\). Several draws at once"):
        elbo.loss(model, guide, data()[1])


def test_a_bayesian_prior_of_a_vae() -> None:
    """A trained normal prior N(loc, 1) with a prior over loc: its posterior is that of the mean of x ~ N(loc, 2)."""

    class Prior(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))

        def forward(self, *given: Any) -> Any:
            return dist.Normal(self.loc, 1.0).to_event(1)

    class Likelihood(nn.Module):
        def forward(self, z: Tensor, *given: Any) -> Any:
            return dist.Normal(z, 1.0).to_event(1)

    pyro.set_rng_seed(0)
    x = torch.tensor([2.0, -1.0]) + torch.randn(80, 2)
    prior = pv.Bayesian(Prior(), name="prior")
    vae = pv.VAE(prior, Likelihood(), pv.DiagonalNormalPosterior(nn.Linear(2, 4)))
    story = pv.with_globals(vae.model, prior.sample_parameters)
    guide = pv.AutoGlobalGuide(story, vae.guide)
    svi = pv.CompiledSVI(story, guide, pv.Adam({"lr": 0.05}), Trace_ELBO(), compile="graph")
    pv.fit(svi, [x], epochs=300, progress=False)
    torch.testing.assert_close(guide.median(x)["prior.loc"], x.sum(0) / (2 + len(x)), atol=0.1, rtol=0)


def test_two_bayesian_decoders_start_where_they_are_told_and_stay_apart() -> None:
    _, x = data()
    guides, starts = [], []
    for seed in (0, 1):
        pyro.set_rng_seed(seed)
        vae, model = linear_parts()
        guides.append(pv.AutoGlobalGuide(model, vae.guide, kind(vae.likelihood)))
        starts.append(vae.likelihood.part.network.weight.clone())
        guides[-1](x)
        assert torch.equal(guides[-1].median(x)["likelihood.network.weight"], starts[-1])
        svi = SVI(model, guides[-1], pv.Adam({"lr": 0.1}), Trace_ELBO())
        trained = [guide.median(x)["likelihood.network.weight"] for guide in guides[:-1]]
        for _ in range(3):
            svi.step(x)
        assert not torch.equal(guides[-1].median(x)["likelihood.network.weight"], starts[-1])
        for guide, then in zip(guides, trained, strict=False):
            assert torch.equal(guide.median(x)["likelihood.network.weight"], then)
