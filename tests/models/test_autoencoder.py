"""The autoencoder: no prior and no density, until a density is fitted to its codes."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import nn

import pyro_vae as pv
from tests import helpers
from tests.helpers.stories import trains_alike


def linear(data_dim: int = 6, latent_dim: int = 2) -> pv.Autoencoder:
    likelihood = pv.GaussianLikelihood(nn.Linear(latent_dim, data_dim), scale=1.0)
    return pv.Autoencoder(nn.Linear(data_dim, latent_dim), likelihood, latent_dim)


def small(**options) -> pv.Autoencoder:
    inputs = 12 if options else 6
    likelihood = pv.BernoulliLikelihood(pv.MLP(2, 6, hidden_dims=(8,)))
    return pv.Autoencoder(pv.MLP(inputs, 2, hidden_dims=(8,)), likelihood, 2, **options)


def test_the_loss_is_the_squared_error(linear_gaussian):
    autoencoder, x = linear(), linear_gaussian.x
    loss = Trace_ELBO().loss(autoencoder.model, autoencoder.guide, x)
    expected = (x - autoencoder.reconstruct(x)).square().sum() / 2 + x.numel() * math.log(2 * math.pi) / 2
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert Trace_ELBO().loss(autoencoder.model, autoencoder.guide, x, beta=0.1) == loss  # no latent terms
    assert Trace_ELBO().loss(autoencoder.model, autoencoder.guide, x, size=1000) == pytest.approx(2 * loss)


def test_a_linear_one_finds_the_principal_directions(linear_gaussian):
    """Baldi and Hornik (1989): the smallest squared error is that of principal component analysis."""
    x = linear_gaussian.x
    autoencoder = linear()
    svi = pv.CompiledSVI(autoencoder.model, autoencoder.guide, pv.Adam({"lr": 2e-2}), Trace_ELBO(), compile="graph")
    history = pv.fit(svi, [x], epochs=600, progress=False)
    error = (x - autoencoder.reconstruct(x)).square().sum(1).mean().item()
    eigenvalues = torch.linalg.eigvalsh(x.T.cov(correction=0))
    assert error == pytest.approx(eigenvalues[:-2].sum().item(), rel=1e-3)
    assert history["train_elbo"][-1] == pytest.approx(-error / 2 - 3 * math.log(2 * math.pi), rel=1e-3)


def test_bounds_and_weights_refuse_it_with_the_reason(binary_data):
    autoencoder = small()
    for refuse in (pv.bounds, pv.log_weights):
        with pytest.raises(ValueError, match=r"site 'z' of the guide is a point mass \(Delta\), which has no density"):
            refuse(autoencoder.model, autoencoder.guide, binary_data, num_particles=2)


def test_there_is_nothing_to_sample_before_a_prior_is_fitted(binary_data):
    autoencoder = small()
    with pytest.raises(NotImplementedError, match=r"sample: expected a prior, .* = pyro_vae.fit_prior\("):
        autoencoder.sample(3)
    with pytest.raises(NotImplementedError, match=r"sample: expected a prior"):
        Predictive(autoencoder.model, num_samples=2)(size=3)
    autoencoder.prior = pv.fit_prior(autoencoder, binary_data[:40], binary_data[40:], epochs=2)
    assert isinstance(autoencoder.prior, pv.MixturePrior)
    assert autoencoder.sample(3).shape == (3, 6)
    assert Predictive(autoencoder.model, num_samples=2)(size=3)["x"].shape == (2, 3, 6)
    with pytest.raises(ValueError, match="point mass"):  # still no density
        pv.bounds(autoencoder.model, autoencoder.guide, binary_data)


def test_a_density_fitted_to_the_codes_mends_its_samples():
    """Sampling the codes as if they were standard normal gives noise; samples of a fitted density are like the data."""
    x = helpers.binary_data(2000)
    autoencoder = small()
    svi = pv.CompiledSVI(autoencoder.model, autoencoder.guide, pv.Adam({"lr": 1e-2}), Trace_ELBO(), compile="graph")
    pv.fit(svi, x.split(100), epochs=30, progress=False)

    def distance(samples: torch.Tensor) -> float:
        """Total variation between the frequencies of the 64 images."""
        counts = [torch.bincount((v @ 2.0 ** torch.arange(6)).long(), minlength=64) / len(v) for v in (samples, x)]
        return (counts[0] - counts[1]).abs().sum().item() / 2

    fitted = pv.fit_prior(autoencoder, x[:1500], x[1500:], epochs=20)
    distances = []
    for prior in (pv.StandardNormalPrior(2), fitted):
        autoencoder.prior = prior
        distances.append(distance(autoencoder.sample(5000)))
    assert distances[1] < 0.25 < distances[0]
    assert distances[1] < distances[0] / 2


def test_the_sites_of_the_story(binary_data):
    autoencoder = small()
    guide_trace = poutine.trace(autoencoder.guide).get_trace(binary_data)
    model_trace = poutine.trace(poutine.replay(autoencoder.model, trace=guide_trace)).get_trace(binary_data)
    model_trace.compute_log_prob()
    assert model_trace.nodes["z"]["log_prob_sum"] == 0
    assert torch.equal(model_trace.nodes["z"]["value"], autoencoder.encode(binary_data).mean)
    expected = {f"autoencoder$$${name}" for name, _ in autoencoder.named_parameters()}
    assert set(guide_trace.param_nodes) == expected
    second = small()
    second.load_state_dict(autoencoder.state_dict())
    assert torch.equal(second.reconstruct(binary_data), autoencoder.reconstruct(binary_data))


@pytest.mark.parametrize("fitted", [False, True])
def test_captured_steps_are_pyros(binary_data, fitted):
    def make():
        autoencoder = small()
        if fitted:
            autoencoder.prior = pv.MixturePrior(2, 3)
        return autoencoder.model, autoencoder.guide

    beta = {"keywords": lambda step: {"beta": torch.tensor((step + 1) / 8)}}
    assert trains_alike(make, Trace_ELBO, binary_data, **beta) == 1
    assert trains_alike(make, pv.TraceSTL_ELBO, binary_data, **beta) == 1


def test_fit_and_resume(tmp_path, binary_data):
    def run(directory, epochs, **options):
        pyro.clear_param_store()
        pyro.set_rng_seed(5)
        autoencoder = small()
        svi = SVI(autoencoder.model, autoencoder.guide, pv.Adam({"lr": 1e-2}), Trace_ELBO())
        checkpoints = [pv.Checkpoint(directory)]
        data = {"validation": [binary_data], "progress": False, "callbacks": checkpoints}
        history = pv.fit(svi, binary_data.split(16), epochs=epochs, **data, **options)
        return autoencoder.state_dict(), history

    whole, history = run(tmp_path / "whole", 4)
    assert history["validation_elbo"][-1] > history["validation_elbo"][0]
    run(tmp_path / "parts", 2)
    state, again = run(tmp_path / "parts", 4, resume=tmp_path / "parts")
    assert again["train_elbo"] == history["train_elbo"]
    assert all(torch.equal(value, whole[name]) for name, value in state.items())


def test_missing_elements_are_left_out(binary_data):
    autoencoder = small(missing=True)
    x = binary_data.clone()
    x[torch.rand(x.shape) < 0.3] = math.nan
    assert autoencoder.reconstruct(x).isfinite().all()
    loss = Trace_ELBO().loss(autoencoder.model, autoencoder.guide, x)
    elements = autoencoder.decode(autoencoder.encode(x).mean).base_dist.log_prob(x.nan_to_num())
    assert loss == pytest.approx(-elements[~x.isnan()].sum().item(), rel=1e-5)


def test_bad_input_is_refused(binary_data):
    likelihood = small().likelihood
    with pytest.raises(TypeError, match=r"encoder: expected a network, a torch.nn.Module, got None"):
        pv.Autoencoder(None, likelihood, 2)
    with pytest.raises(ValueError, match=r"latent_dim: expected an integer of at least 1, got 0"):
        pv.Autoencoder(nn.Linear(6, 2), likelihood, 0)
    wide = pv.Autoencoder(nn.Linear(6, 3), likelihood, 2)
    with pytest.raises(ValueError, match=r"expected q\(z\|x\) of event shape \(2,\), .* got \(3,\)"):
        wide.guide(binary_data)
    holes = binary_data.clone()
    holes[0, 0] = math.nan
    for autoencoder in (small(), linear()):
        with pytest.raises(ValueError, match=r"x: expected finite values, got nan. Remove what is missing, or build"):
            Trace_ELBO().loss(autoencoder.model, autoencoder.guide, holes)


def test_global_variables_beside_a_code(binary_data):
    """The autoguide starts from codes of the encoder, since the improper prior has no draws."""
    likelihood = pv.Bayesian(pv.BernoulliLikelihood(pv.MLP(2, 6, hidden_dims=())))
    autoencoder = pv.Autoencoder(pv.MLP(6, 2, hidden_dims=()), likelihood, latent_dim=2)
    story = pv.with_globals(autoencoder.model, likelihood.sample_parameters)
    guide = pv.AutoGlobalGuide(story, autoencoder.guide)
    svi = SVI(story, guide, pv.Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(binary_data) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])
    with pytest.raises(NotImplementedError, match=r"trained without one\. Fit it afterwards"):
        autoencoder.model(None)
