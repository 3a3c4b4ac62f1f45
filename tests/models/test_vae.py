"""The VAE as a Pyro program: everything of Pyro that takes a model and a guide takes these two."""

from __future__ import annotations

import copy
import itertools
import math

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal
from torch import nn

import pyro_vae as pv


def trainer(vae, loss=None, lr=1e-2):
    return SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": lr}), loss or Trace_ELBO())


@pytest.mark.parametrize("objective", [Trace_ELBO, pytest.param(TraceMeanField_ELBO, marks=pytest.mark.slow)])
def test_svi_reaches_the_closed_form_optimum(linear_gaussian, objective):
    """From a random start to within 0.5 % of the log-likelihood of probabilistic PCA."""
    d, k = linear_gaussian.x.shape[1], 2
    vae = pv.VAE(
        pv.StandardNormalPrior(k),
        pv.GaussianLikelihood(nn.Linear(k, d)),
        pv.DiagonalNormalPosterior(nn.Linear(d, 2 * k)),
    )
    for lr, steps in ((5e-2, 700), (5e-3, 200)):
        svi = trainer(vae, objective(), lr=lr)
        for _ in range(steps):
            svi.step(linear_gaussian.x)
    elbo = pv.elbo(pv.log_weights(vae.model, vae.guide, linear_gaussian.x, num_particles=50)).mean().item()
    assert elbo == pytest.approx(linear_gaussian.log_likelihood, rel=5e-3)
    assert elbo < linear_gaussian.log_likelihood + 5e-3  # the optimum is an upper bound, up to the estimate's error


def test_elbo_of_both_objectives_is_the_closed_form(linear_gaussian):
    vae, x = linear_gaussian.vae, linear_gaussian.x
    for objective, particles in ((Trace_ELBO, 1), (TraceMeanField_ELBO, 200)):
        svi = trainer(vae, objective(num_particles=particles, vectorize_particles=True, max_plate_nesting=1))
        tolerance = 1e-4 if objective is Trace_ELBO else 5e-3  # at the optimum every log-weight is log p(x)
        assert -svi.evaluate_loss(x) / len(x) == pytest.approx(linear_gaussian.log_likelihood, rel=tolerance)


def test_beta_weighs_the_latent_terms_alone(linear_gaussian):
    vae, x = linear_gaussian.vae, linear_gaussian.x
    loss = TraceMeanField_ELBO()
    for beta in (0.5, torch.tensor(2.0)):
        pyro.set_rng_seed(0)
        plain = loss.loss(vae.model, vae.guide, x)
        pyro.set_rng_seed(0)
        weighted = loss.loss(vae.model, vae.guide, x, beta=beta)
        expected = (float(beta) - 1) * linear_gaussian.kl * len(x)
        assert weighted - plain == pytest.approx(expected, rel=1e-3)


def test_size_scales_a_mini_batch_up_to_the_whole_set(linear_gaussian):
    vae, x = linear_gaussian.vae, linear_gaussian.x
    loss = Trace_ELBO()
    whole = loss.loss(vae.model, vae.guide, x)
    halves = [loss.loss(vae.model, vae.guide, part, size=len(x)) for part in x.split(len(x) // 2)]
    assert sum(halves) / 2 == pytest.approx(whole, rel=1e-5)
    trace = poutine.trace(vae.model).get_trace(x[:10], size=len(x))
    assert trace.nodes["x"]["scale"] == len(x) / 10
    assert trace.nodes["z"]["cond_indep_stack"][0].name == "data"
    assert trace.nodes["z"]["cond_indep_stack"][0].dim == -1


def test_trace_has_the_sites_of_the_story(make_vae, binary_data):
    vae = make_vae()
    model_trace = poutine.trace(vae.model).get_trace(binary_data)
    guide_trace = poutine.trace(vae.guide).get_trace(binary_data)
    assert [n for n, s in model_trace.nodes.items() if s["type"] == "sample" and n != "data"] == ["z", "x"]
    assert [n for n, s in guide_trace.nodes.items() if s["type"] == "sample" and n != "data"] == ["z"]
    assert model_trace.nodes["x"]["is_observed"]
    assert model_trace.nodes["z"]["value"].shape == (64, 2)
    expected = {f"vae$$${name}" for name, _ in vae.named_parameters()}
    assert {n for n, s in model_trace.nodes.items() if s["type"] == "param"} == expected


def test_predictive_from_the_prior_and_the_posterior(make_vae, binary_data):
    vae = make_vae()
    prior = Predictive(vae.model, num_samples=7)()
    assert prior["x"].shape == (7, 1, 6)
    assert prior["z"].shape == (7, 1, 2)
    assert Predictive(vae.model, num_samples=7)(size=5)["x"].shape == (7, 5, 6)
    assert Predictive(vae.model, num_samples=7, parallel=True)(size=5)["x"].shape == (7, 5, 6)
    posterior = Predictive(vae.model, guide=vae.guide, num_samples=7, return_sites=["x", "z"])(binary_data)
    assert posterior["z"].shape == (7, 64, 2)
    assert torch.equal(posterior["x"][3], binary_data)
    assert set(prior["x"].unique().tolist()) <= {0.0, 1.0}


def test_prior_predictive_has_the_moments_of_the_generative_model(linear_gaussian):
    x = linear_gaussian.vae.sample(20_000)
    data = linear_gaussian.x
    error = (x.mean(0) - data.mean(0)) / (x.var(0) / len(x)).sqrt()
    assert error.abs().max() < 4.5
    # At the optimum the model's total variance is that of the data.
    assert x.var(0).sum().item() == pytest.approx(data.var(0, correction=0).sum().item(), rel=0.02)
    assert linear_gaussian.vae.sample(4, mean=True).shape == (4, data.shape[1])


def test_reconstruction_is_the_decoded_posterior_mean(make_vae, binary_data):
    vae = make_vae()
    expected = vae.decode(vae.encode(binary_data).mean).mean
    assert torch.equal(vae.reconstruct(binary_data), expected)
    assert not vae.reconstruct(binary_data).requires_grad


def test_means_of_samples_vary_as_the_decoded_prior_does(linear_gaussian):
    """E[x|z] = W z + mean for z ~ N(0, I): the total variance less the noise."""
    vae = linear_gaussian.vae
    means = vae.sample(20_000, mean=True)
    weight = vae.likelihood.network.weight.detach()
    torch.testing.assert_close(means.T.cov(), weight @ weight.T, rtol=0, atol=0.15)
    noise = vae.likelihood(torch.zeros(2)).base_dist.scale[0].item()
    draws = []
    for mean in (True, False):
        pyro.set_rng_seed(0)  # the same z
        draws.append(vae.sample(20_000, mean=mean))
    assert (draws[1] - draws[0]).std().item() == pytest.approx(noise, rel=0.02)


def test_convolutions_take_particles_through_any_leading_dims(binary_data):
    decoder = nn.Sequential(nn.Linear(2, 12), nn.Unflatten(1, (2, 2, 3)), nn.Conv2d(2, 1, 1))
    encoder = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(1), nn.Linear(12, 4))
    vae = pv.VAE(
        pv.StandardNormalPrior(2),
        pv.BernoulliLikelihood(pv.AnyLeadingDims(decoder, event_dim=1), event_shape=(1, 2, 3)),
        pv.DiagonalNormalPosterior(pv.AnyLeadingDims(encoder, event_dim=3)),
    )
    x = binary_data.reshape(-1, 1, 2, 3)
    svi = trainer(vae, Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1))
    before = copy.deepcopy(vae.state_dict())
    svi.step(x)
    assert all(not torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert pv.log_weights(vae.model, vae.guide, x, num_particles=5).shape == (5, 64)
    assert Predictive(vae.model, num_samples=7, parallel=True)(size=3)["x"].shape == (7, 3, 1, 2, 3)
    with pytest.raises(ValueError, match=r"with 4 dimensions, got shape \(1, 2, 3\)"):
        svi.step(x[0])


def test_state_dict_is_the_way_to_save(make_vae, binary_data, tmp_path):
    vae, again = make_vae(), make_vae()
    trainer(vae).step(binary_data)
    torch.save(vae.state_dict(), tmp_path / "vae.pt")
    again.load_state_dict(torch.load(tmp_path / "vae.pt", weights_only=True))
    assert torch.equal(again.reconstruct(binary_data), vae.reconstruct(binary_data))
    before = again.reconstruct(binary_data)
    trainer(again).step(binary_data)
    assert not torch.equal(before, again.reconstruct(binary_data))
    with pytest.raises(TypeError, match="weakref"):  # of Pyro's param store, as VAE's docstring says
        torch.save(vae, tmp_path / "whole.pt")


@pytest.mark.slow
def test_nuts_over_z_finds_the_exact_posterior(linear_gaussian):
    vae, x = linear_gaussian.vae, linear_gaussian.x[:3]
    for parameter in vae.parameters():
        parameter.requires_grad_(False)
    pyro.set_rng_seed(1)
    mcmc = MCMC(NUTS(vae.model), num_samples=300, warmup_steps=100, disable_progbar=True)
    mcmc.run(x)
    z = mcmc.get_samples()["z"]
    assert z.shape == (300, 3, 2)
    exact = vae.encode(x)
    error = (z.mean(0) - exact.mean) / (linear_gaussian.posterior_scale / math.sqrt(100))  # >= 100 effective draws
    assert error.abs().max() < 4.5
    torch.testing.assert_close(z.std(0), linear_gaussian.posterior_scale.expand(3, 2), rtol=0.25, atol=0)


def test_auto_guide_takes_the_guides_place(linear_gaussian):
    """Without amortisation, one normal a datum: it ends where the exact posterior is."""
    vae, x = linear_gaussian.vae, linear_gaussian.x[:5]
    for parameter in vae.parameters():
        parameter.requires_grad_(False)
    guide = AutoDiagonalNormal(vae.model, init_scale=0.5)
    objective = TraceMeanField_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(vae.model, guide, pyro.optim.Adam({"lr": 3e-2}), objective)
    for _ in range(300):
        svi.step(x)
    loc = guide.median(x)["z"]
    torch.testing.assert_close(loc, vae.encode(x).mean, rtol=0, atol=0.1)


def test_handlers_of_pyro_take_the_model(make_vae, binary_data):
    vae = make_vae()
    z = torch.zeros(64, 2)
    conditioned = poutine.condition(vae.model, {"z": z})
    trace = poutine.trace(conditioned).get_trace(binary_data)
    assert trace.nodes["z"]["is_observed"]
    trace.compute_log_prob()
    expected = vae.decode(z).log_prob(binary_data).sum() + vae.prior().log_prob(z).sum()
    assert trace.log_prob_sum().item() == pytest.approx(expected.item(), rel=1e-6)
    drawn = poutine.uncondition(vae.model)(binary_data)
    assert drawn.shape == binary_data.shape
    assert not torch.equal(drawn, binary_data)


def test_model_can_be_rendered(make_vae, binary_data):
    pytest.importorskip("graphviz")
    source = pyro.render_model(make_vae().model, model_args=(binary_data,)).source
    assert "z -> x" in source
    assert "data" in source


class MixtureVAE(pv.VAE):
    """A subclass with a story of its own: y ~ p(y), z ~ N(mean of y, 1), x ~ p(x|z)."""

    def __init__(self, *parts):
        super().__init__(*parts)
        self.means = nn.Parameter(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))

    def model(self, x=None, *, size=None, beta=1.0):
        pv.module("mixture", self)
        with self.data_plate(x, size=size):
            y = pyro.sample("y", dist.Categorical(torch.ones(2) / 2))
            z = pyro.sample("z", dist.Normal(self.means[y], 1.0).to_event(1))
            return pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x, *, size=None, beta=1.0):
        pv.module("mixture", self)
        with self.data_plate(x, size=size):
            pyro.sample("y", dist.Categorical(torch.ones(2) / 2))
            pyro.sample("z", self.encode(x))


def test_subclass_may_rewrite_the_story(make_vae, binary_data):
    base = make_vae()
    vae = MixtureVAE(base.prior, base.likelihood, base.posterior)
    svi = trainer(vae)
    before = copy.deepcopy(vae.state_dict())
    first = sum(svi.evaluate_loss(binary_data) for _ in range(20))
    for _ in range(200):
        svi.step(binary_data)
    assert sum(svi.evaluate_loss(binary_data) for _ in range(20)) < first
    assert all(not torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert pv.log_weights(vae.model, vae.guide, binary_data, num_particles=3).shape == (3, 64)


def test_two_plain_functions_do_without_the_class(binary_data):
    decoder, encoder = pv.MLP(2, 6, hidden_dims=(8,)), pv.MLP(6, 4, hidden_dims=(8,))
    likelihood, posterior = pv.BernoulliLikelihood(decoder), pv.DiagonalNormalPosterior(encoder)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", likelihood(z), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    history = pv.fit(svi, [binary_data], epochs=100, validation=[binary_data], progress=False)
    # The entropy of the data, log 2 + 6 H(0.1), bounds what any model can reach.
    assert history["validation_elbo"][0] < history["validation_elbo"][-1] < -math.log(2)
    assert pv.log_weights(model, guide, binary_data).shape == (1, 64)


def test_vae_reaches_the_truth_of_a_tiny_discrete_world(make_vae):
    """log p(x) by quadrature over z bounds the ELBO and meets the importance-weighted bound, for all 64 images."""
    vae = make_vae(latent_dim=1)
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)))
    svi = trainer(vae)
    for _ in range(50):
        svi.step(x[[7, 56]])
    z = torch.linspace(-8, 8, 4001)[:, None]
    with torch.no_grad():
        log_joint = vae.decode(z[:, None]).log_prob(x) + vae.prior().log_prob(z)[:, None]
    exact = torch.logsumexp(log_joint, 0) + math.log(16 / 4000)
    assert torch.logsumexp(exact, 0).item() == pytest.approx(0.0, abs=1e-3)  # p(x) sums to one over all images
    pyro.set_rng_seed(0)
    log_w = pv.log_weights(vae.model, vae.guide, x, num_particles=20_000).detach()
    relative_error = log_w.exp().std(0) / log_w.exp().mean(0) / math.sqrt(20_000)
    assert ((pv.iwae(log_w) - exact).abs() < 5 * relative_error + 1e-3).all()
    assert (pv.elbo(log_w) < exact).all()


# Bad input -----------------------------------------------------------------------------------------------------------


def test_bad_data_are_refused_by_name(make_vae):
    vae = make_vae()
    step = trainer(vae).step
    with pytest.raises(ValueError, match=r"x: expected a batch \(B, \*E\) of at least one datum, got shape \(0, 6\)"):
        step(torch.zeros(0, 6))
    with pytest.raises(ValueError, match=r"got shape \(\)"):
        step(torch.tensor(1.0))
    with pytest.raises(TypeError, match=r"x: expected a torch.Tensor, got list"):
        step([[1.0] * 6])
    with pytest.raises(ValueError, match=r"x: expected a batch \(B, \*E\) with 2 dimensions, got shape \(4, 2, 3\)"):
        step(torch.zeros(4, 2, 3))
    with pytest.raises(ValueError, match=r"got shape \(6,\). Give a single datum as x\[None\]"):
        step(torch.zeros(6))  # would pass for 6 data
    with pytest.raises(ValueError, match=r"input: expected shape \(\*, 6\)"):
        step(torch.zeros(4, 7))
    with pytest.raises(ValueError, match=r"x: expected finite values, got nan"):
        step(torch.full((4, 6), math.nan))
    with pytest.raises(TypeError, match=r"x: expected torch.float32, .* got torch.float64"):
        step(torch.zeros(4, 6, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"size: expected an integer of at least 1, got 20.5"):
        vae.model(torch.zeros(4, 6), size=20.5)
    with pytest.raises(TypeError, match=r"x: expected floating-point values"):
        step(torch.zeros(4, 6, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"x: expected values in \{0, 1\} for BernoulliLikelihood, got 0.37"):
        step(torch.full((4, 6), 0.37))
    with pytest.raises(ValueError, match=r"size: expected the number of data in the whole set, at least len\(x\) = 4"):
        vae.model(torch.zeros(4, 6), size=3)
    with pytest.raises(ValueError, match=r"size: expected an integer of at least 1, got 0"):
        vae.model(size=0)
    with pytest.raises(ValueError, match=r"n: expected an integer of at least 1, got 0"):
        vae.sample(0)
    with pytest.raises(TypeError, match=r"prior: expected a module whose forward returns a distribution, got None"):
        pv.VAE(None, vae.likelihood, vae.posterior)


def test_parts_that_give_no_distribution_are_refused(make_vae):
    vae = make_vae()
    with pytest.raises(
        TypeError, match=r"likelihood: expected a module whose forward returns a distribution, .* Tensor"
    ):
        pv.VAE(vae.prior, pv.MLP(2, 6), vae.posterior).sample()
    with pytest.raises(
        TypeError, match=r"posterior: expected a module whose forward returns a distribution, .* Tensor"
    ):
        pv.VAE(vae.prior, vae.likelihood, pv.MLP(6, 4)).reconstruct(torch.zeros(4, 6))
    with pytest.raises(TypeError, match=r"prior: expected a module"):
        pv.VAE(pv.StandardNormalPrior, vae.likelihood, vae.posterior)


@pytest.mark.parametrize("fault", ["kl sign", "scale", "no prior"])
def test_a_planted_fault_is_seen(linear_gaussian, fault):
    """The equality that other tests rest on, log-weights = log p(x), fails for each of these mistakes."""
    vae, x = linear_gaussian.vae, linear_gaussian.x
    if fault == "scale":
        with torch.no_grad():
            vae.posterior.network.bias[2:] += 0.1

    def model(x):
        with pyro.plate("data", len(x)), poutine.scale(scale=1.0):
            sign = -1.0 if fault == "kl sign" else 1.0
            with poutine.mask(mask=fault != "no prior"):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            if sign < 0:
                pyro.factor("wrong", -2 * vae.prior().log_prob(z))
            pyro.sample("x", vae.decode(z), obs=x)

    log_w = pv.log_weights(model, vae.guide, x)
    assert (log_w[0] - linear_gaussian.log_px).abs().max() > 1e-2
