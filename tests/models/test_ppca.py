"""Probabilistic principal component analysis, against scikit-learn, closed forms and conditional distributions."""

from __future__ import annotations

import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from sklearn.decomposition import PCA

import pyro_vae as pv
from tests import helpers
from tests.helpers.stories import trains_alike


@pytest.fixture
def data() -> torch.Tensor:
    return helpers.linear_gaussian(dtype=torch.float64).x


def marginal(ppca: pv.ProbabilisticPCA) -> dist.MultivariateNormal:
    weight, mean = ppca.likelihood.network.weight.detach(), ppca.likelihood.network.bias.detach()
    variance = ppca.likelihood.scale([]).detach().square()
    return dist.MultivariateNormal(mean, weight @ weight.T + variance * torch.eye(len(mean), dtype=mean.dtype))


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_the_fit_is_that_of_scikit_learn(data, latent_dim):
    ppca = pv.ProbabilisticPCA.fit(data, latent_dim)
    theirs = PCA(latent_dim).fit(data.numpy())
    ratio = (len(data) - 1) / len(data)  # they divide by N - 1, which is not maximum likelihood
    theirs.explained_variance_ *= ratio
    theirs.noise_variance_ *= ratio
    expected = theirs.score_samples(data.numpy())
    np.testing.assert_allclose(ppca.log_likelihood(data).detach().numpy(), expected, rtol=0, atol=1e-9)
    weight = ppca.likelihood.network.weight.detach()
    directions = weight / weight.norm(dim=0)
    signs = np.sign((theirs.components_ * directions.T.numpy()).sum(1, keepdims=True))
    np.testing.assert_allclose(directions.T.numpy(), signs * theirs.components_, atol=1e-9)
    assert (weight.gather(0, weight.abs().argmax(0, keepdim=True)) > 0).all()


def test_log_likelihood_is_the_closed_form_and_the_maximum():
    solved = helpers.linear_gaussian(dtype=torch.float64)
    ppca = pv.ProbabilisticPCA.fit(solved.x, 2)
    torch.testing.assert_close(ppca.log_likelihood(solved.x), solved.log_px, rtol=0, atol=1e-9)
    torch.testing.assert_close(ppca.log_likelihood(solved.x), marginal(ppca).log_prob(solved.x), rtol=0, atol=1e-9)
    ppca.log_likelihood(solved.x).mean().backward()
    assert all(parameter.grad.abs().max() < 1e-9 for parameter in ppca.parameters())
    q, exact = ppca.encode(solved.x), solved.vae.encode(solved.x)
    torch.testing.assert_close(q.stddev, exact.stddev, rtol=0, atol=1e-9)
    torch.testing.assert_close(q.mean.abs(), exact.mean.abs(), rtol=0, atol=1e-9)  # up to signs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounds_are_log_p_x_with_any_parameters(data, dtype):
    tolerance = 1e-5 if dtype == torch.float64 else 1e-4
    fitted = pv.ProbabilisticPCA.fit(data.to(dtype), 2)
    drawn = pv.ProbabilisticPCA(6, 3).to(dtype)  # not orthogonal: a posterior with full covariance
    for ppca in (fitted, drawn):
        for bound in pv.bounds(ppca.model, ppca.guide, data.to(dtype), num_particles=3):
            exact = marginal(copy.deepcopy(ppca).double()).log_prob(data)
            torch.testing.assert_close(bound.double(), exact, rtol=tolerance, atol=tolerance)
    assert fitted.likelihood.network.weight.dtype == dtype


def test_the_guide_is_the_posterior(data):
    ppca = pv.ProbabilisticPCA(6, 3).double()
    weight = ppca.likelihood.network.weight.detach()
    variance = ppca.likelihood.scale([]).detach().square()
    covariance = (torch.eye(3) + weight.T @ weight / variance).inverse()
    expected = (data - ppca.likelihood.network.bias.detach()) @ weight @ covariance / variance
    q = ppca.encode(data)
    torch.testing.assert_close(q.mean.detach(), expected)
    torch.testing.assert_close(q.covariance_matrix[0].detach(), covariance)
    draws = Predictive(ppca.model, guide=ppca.guide, num_samples=4000, parallel=True)(data[:2])["z"]
    assert draws.shape == (4000, 2, 3)
    error = (draws.mean(0) - expected[:2]) / covariance.diagonal().sqrt() * math.sqrt(4000)
    assert error.abs().max() < 4.5


def test_with_missing_elements_the_bound_is_that_of_the_observed_ones(data):
    ppca = pv.ProbabilisticPCA(6, 2, missing=True).double()
    ppca.load_state_dict(pv.ProbabilisticPCA.fit(data, 2).state_dict())
    x, mask = data[:40].clone(), torch.rand(40, 6) < 0.6
    x[~mask] = math.nan
    p = marginal(ppca)
    exact = []
    for row, seen in zip(x, mask, strict=True):
        part = dist.MultivariateNormal(p.mean[seen], p.covariance_matrix[seen][:, seen]) if seen.any() else None
        exact.append(torch.zeros((), dtype=x.dtype) if part is None else part.log_prob(row[seen]))
    exact = torch.stack(exact)
    torch.testing.assert_close(ppca.log_likelihood(x), exact)
    torch.testing.assert_close(ppca.log_likelihood(data[:40], mask=mask), exact)
    torch.testing.assert_close(pv.bounds(ppca.model, ppca.guide, x, num_particles=2).elbo, exact)
    # What is imputed is the conditional mean.
    row, seen = x[0], mask[0]
    covariance = p.covariance_matrix
    gain = covariance[~seen][:, seen] @ covariance[seen][:, seen].inverse()
    expected = p.mean[~seen] + gain @ (row[seen] - p.mean[seen])
    torch.testing.assert_close(ppca.reconstruct(x)[0][~seen], expected)
    loss = -ppca.log_likelihood(x).sum()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in ppca.parameters())


def test_svi_reaches_the_closed_form(data):
    """From random parameters, by the exact log-likelihood."""
    fitted, ppca = pv.ProbabilisticPCA.fit(data, 2), pv.ProbabilisticPCA(6, 2).double()
    svi = pv.CompiledSVI(ppca.model, ppca.guide, pv.Adam({"lr": 3e-2}), Trace_ELBO(), compile="graph")
    losses = [svi.step(data) / len(data) for _ in range(400)]
    assert losses[-1] == pytest.approx(-fitted.log_likelihood(data).mean().item(), abs=2e-4)
    weight, other = ppca.likelihood.network.weight, fitted.likelihood.network.weight
    torch.testing.assert_close(weight @ weight.T, other @ other.T, rtol=0, atol=0.3)


def test_the_gradient_of_the_elbo_is_that_of_the_log_likelihood(data):
    ppca = pv.ProbabilisticPCA(6, 2).double()
    ppca.log_likelihood(data).sum().backward()
    expected = [parameter.grad.clone() for parameter in ppca.parameters()]
    ppca.zero_grad()
    Trace_ELBO().loss_and_grads(ppca.model, ppca.guide, data)
    for parameter, gradient in zip(ppca.parameters(), expected, strict=True):
        torch.testing.assert_close(-parameter.grad, gradient)


@pytest.mark.parametrize("objective", [Trace_ELBO, pv.TraceSTL_ELBO, lambda: pv.TraceIWAE_ELBO(3, gradient="dreg")])
def test_captured_steps_are_pyros(data, objective):
    def make():
        ppca = pv.ProbabilisticPCA(6, 2).double()
        return ppca.model, ppca.guide

    assert trains_alike(make, objective, data, keywords=lambda step: {"beta": torch.tensor((step + 1) / 8.0)}) == 1


def test_fit_of_the_loop_takes_it(data):
    ppca = pv.ProbabilisticPCA(6, 2).double()
    svi = SVI(ppca.model, ppca.guide, pyro.optim.Adam({"lr": 3e-2}), Trace_ELBO())
    history = pv.fit(svi, data.split(100), epochs=3, validation=[data], progress=False)
    assert history["validation_elbo"][-1] == pytest.approx(ppca.log_likelihood(data).mean().item(), abs=1e-6)


def test_samples_have_the_moments_of_the_data(data):
    ppca = pv.ProbabilisticPCA.fit(data, 5)
    x = ppca.sample(50_000)
    torch.testing.assert_close(x.mean(0), data.mean(0), rtol=0, atol=0.05)
    torch.testing.assert_close(x.T.cov(), data.T.cov(correction=0), rtol=0.1, atol=0.1)
    # The orthogonal projection, drawn towards the mean: with all directions kept, nearly the data themselves.
    assert (ppca.reconstruct(data) - data).square().mean() < data.var() * 0.1


def test_data_on_a_small_scale_are_fitted_on_it(data):
    small = pv.ProbabilisticPCA.fit(data * 1e-5, 2)
    expected = pv.ProbabilisticPCA.fit(data, 2).log_likelihood(data) - 6 * math.log(1e-5)
    torch.testing.assert_close(small.log_likelihood(data * 1e-5), expected)


def test_bad_input_is_refused(data):
    with pytest.raises(ValueError, match=r"latent_dim: expected at most 5, one below .*, got 6"):
        pv.ProbabilisticPCA.fit(data, 6)
    with pytest.raises(ValueError, match=r"latent_dim: expected an integer of at least 1, got 0"):
        pv.ProbabilisticPCA(6, 0)
    with pytest.raises(ValueError, match=r"x: expected shape \(N, d\), got \(500, 2, 3\). Write images as x.flatten"):
        pv.ProbabilisticPCA.fit(data.reshape(500, 2, 3), 2)
    with pytest.raises(ValueError, match=r"x: expected shape \(N, d\), got \(0, 6\)"):
        pv.ProbabilisticPCA.fit(data[:0], 2)
    with pytest.raises(ValueError, match=r"x: expected data that vary in more than latent_dim = 2 directions, got 3 d"):
        pv.ProbabilisticPCA.fit(data[:3], 2)
    with pytest.raises(TypeError, match=r"x: expected floating-point values"):
        pv.ProbabilisticPCA.fit(data.long(), 2)
    holes = data.clone()
    holes[3, 1] = math.nan
    with pytest.raises(ValueError, match=r"x: expected finite values, got nan. There is no closed form with missing"):
        pv.ProbabilisticPCA.fit(holes, 2)
    ppca = pv.ProbabilisticPCA.fit(data, 2)
    with pytest.raises(ValueError, match=r"x: expected finite values, got nan. Remove what is missing, or build the"):
        ppca.guide(holes)
    with pytest.raises(ValueError, match=r"x: expected event shape \(6,\), that of ProbabilisticPCA"):
        ppca.encode(data[:, :1])
    with pytest.raises(TypeError, match=r"x: expected torch.float64, the dtype of the parameters, got torch.float32"):
        ppca.log_likelihood(data.float())
