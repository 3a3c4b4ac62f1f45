"""The contract of the posteriors, held against each of them."""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence

import pyro_vae as pv
from pyro_vae import posteriors
from tests.helpers import check_gradients, check_state_dict, fit_pvalue, total_mass

D, E = 2, 3
POSTERIORS = {
    "DiagonalNormalPosterior": lambda: pv.DiagonalNormalPosterior(pv.MLP(E, 2 * D, hidden_dims=(4,))),
    "MultivariateNormalPosterior": lambda: pv.MultivariateNormalPosterior(pv.MLP(E, 2 * D + 1, hidden_dims=(4,))),
    "LowRankNormalPosterior": lambda: pv.LowRankNormalPosterior(pv.MLP(E, 3 * D, hidden_dims=(4,)), rank=1),
    "FlowPosterior (affine)": lambda: flow_posterior("affine"),
    "FlowPosterior (spline)": lambda: flow_posterior("spline"),
    "FlowPosterior (fast density)": lambda: flow_posterior("affine", inverse=False),
    "DeltaPosterior": lambda: pv.DeltaPosterior(pv.MLP(E, D, hidden_dims=(4,))),
}
DENSITIES = [name for name in POSTERIORS if name != "DeltaPosterior"]  # a point has none


def flow_posterior(transform: str, inverse: bool = True) -> pv.FlowPosterior:
    flow = pv.autoregressive_flow(D, transform=transform, context_dim=3, hidden_dims=(8,), inverse=inverse)
    return pv.FlowPosterior(pv.MLP(E, 2 * D + 3, hidden_dims=(4,)), flow, context_dim=3)


each_density = pytest.mark.parametrize("name", DENSITIES)
each_posterior = pytest.mark.parametrize("name", POSTERIORS)


def test_every_exported_posterior_is_listed() -> None:
    assert set(posteriors.__all__) == {name.split()[0] for name in POSTERIORS}


@pytest.mark.parametrize("leading", [(), (5,), (4, 5)])
@each_posterior
def test_shapes_with_any_leading_dimensions(name: str, leading: tuple[int, ...]) -> None:
    q = POSTERIORS[name]()(torch.rand(*leading, E))
    assert (q.batch_shape, q.event_shape) == (leading, (D,))
    z = q.rsample((7,))
    assert z.shape == (7, *leading, D)
    assert q.log_prob(z).shape == (7, *leading)


@each_posterior
def test_every_parameter_gets_a_gradient(name: str) -> None:
    posterior = POSTERIORS[name]()
    if name in DENSITIES:
        check_gradients(posterior, posterior(torch.rand(5, E)).log_prob(torch.randn(5, D)))
        posterior.zero_grad()
    check_gradients(posterior, posterior(torch.rand(5, E)).rsample())


@each_posterior
def test_state_dict_round_trip(name: str, tmp_path: Any) -> None:
    x, z = torch.rand(5, E), torch.randn(5, D)
    evaluate = lambda q: q(x).log_prob(z) if name in DENSITIES else q(x).sample()  # noqa: E731
    check_state_dict(POSTERIORS[name], evaluate, tmp_path / "posterior.pt")


@each_posterior
def test_double_precision_throughout(name: str) -> None:
    q = POSTERIORS[name]().double()(torch.rand(5, E, dtype=torch.float64))
    assert q.rsample().dtype == q.log_prob(q.sample()).dtype == torch.float64


@each_posterior
def test_densities_stay_in_float32_under_autocast(name: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        q = POSTERIORS[name]()(torch.rand(5, E))
        assert q.log_prob(q.rsample()).dtype == torch.float32


@each_density
def test_density_integrates_to_one(name: str) -> None:
    q = POSTERIORS[name]().double()(torch.rand(E).double())
    spline = "spline" in name  # costly, and not smooth
    mass = total_mass(q, points_of_two=301 if spline else 1001)
    assert mass == pytest.approx(1.0, abs=2e-3 if spline else 1e-6)


@each_density
def test_samples_agree_with_the_density_and_not_with_a_wrong_one(name: str) -> None:
    q = POSTERIORS[name]().double()(torch.rand(E).double())
    assert fit_pvalue(q, n=5000) > 1e-4  # the test approximates: with more draws, exact samplers fail it
    assert fit_pvalue(q, lambda z: q.log_prob(z / 1.3) - D * math.log(1.3), n=5000) < 1e-6


@each_posterior
def test_input_of_another_type_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=r"x: expected floating-point values"):
        POSTERIORS[name]()(torch.zeros(2, E, dtype=torch.uint8))
    for dtype in (torch.float16, torch.float64):
        with pytest.raises(TypeError, match=rf"x: expected torch.float32, the dtype of the parameters, got {dtype}"):
            POSTERIORS[name]()(torch.zeros(2, E, dtype=dtype))
    with pytest.raises(TypeError, match=r"x: expected a torch.Tensor, got list"):
        POSTERIORS[name]()([[0.0] * E])


def test_the_diagonal_normal_has_the_means_and_variances_of_its_network() -> None:
    posterior = pv.DiagonalNormalPosterior(nn.Linear(E, 2 * D), min_scale=0.1)
    x = torch.randn(5, E)
    means, log_variances = posterior.network(x).chunk(2, -1)
    q = posterior(x)
    assert torch.equal(q.mean, means)
    torch.testing.assert_close(q.variance.sqrt(), 0.1 + (log_variances / 2).exp())


def test_bad_arguments_are_refused() -> None:
    for wrong in (-1, 0.0, math.inf, math.nan, "small", None):
        with pytest.raises(ValueError, match=r"min_scale: expected a finite number above 0, got"):
            pv.DiagonalNormalPosterior(nn.Linear(E, 4), min_scale=wrong)
    with pytest.raises(ValueError, match=r"network: expected an even output width, 2 \* latent_dim .* got 5"):
        pv.DiagonalNormalPosterior(nn.Linear(E, 5))(torch.zeros(2, E))


def vae_with(q: Any) -> pv.VAE:
    return pv.VAE(pv.StandardNormalPrior(D), pv.BernoulliLikelihood(pv.MLP(D, E, hidden_dims=(4,))), q)


def bits(n: int) -> Tensor:
    return torch.rand(n, E, generator=torch.Generator().manual_seed(1)).round()


@each_posterior
def test_training_is_captured_and_equals_pyros(name: str) -> None:
    pyro.set_rng_seed(0)
    first = vae_with(POSTERIORS[name]())
    second = copy.deepcopy(first)
    losses = []
    for vae, make in ((first, SVI), (second, pv.CompiledSVI)):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        options = {} if make is SVI else {"compile": "graph", "check_steps": 1, "on_refusal": "raise"}
        svi = make(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), Trace_ELBO(), **options)
        losses.append([svi.step(bits(20)) for _ in range(6)])
    assert svi.captures == 1
    assert losses[0] == losses[1]
    for p, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, other)


@each_density
def test_bounds_and_reconstructions_with_each_posterior(name: str) -> None:
    vae = vae_with(POSTERIORS[name]())
    elbo, bound = pv.bounds(vae.model, vae.guide, bits(9), num_particles=50)
    assert elbo.mean() < bound.mean() < 0
    assert vae.reconstruct(bits(9), num_particles=3).shape == (9, E)


def test_a_point_has_no_bound() -> None:
    vae = vae_with(POSTERIORS["DeltaPosterior"]())
    with pytest.raises(ValueError, match="Delta"):
        pv.bounds(vae.model, vae.guide, bits(9), num_particles=5)


@pytest.mark.parametrize("name", ["MultivariateNormalPosterior", "LowRankNormalPosterior"])
def test_the_divergence_from_the_standard_normal_has_a_closed_form(name: str) -> None:
    q = POSTERIORS[name]().double()(torch.randn(4, E).double())
    p = pv.StandardNormalPrior(D).double()()
    z = q.sample((200_000,))
    draws = q.log_prob(z) - p.log_prob(z)
    error = (kl_divergence(q, p.expand((4,))) - draws.mean(0)).abs()
    assert (error < 5 * draws.std(0) / len(z) ** 0.5).all()
    vae = vae_with(POSTERIORS[name]())
    x, divergences = bits(4), []
    for seed in (0, 1):  # the term of the loss has no noise
        pyro.set_rng_seed(seed)
        loss = TraceMeanField_ELBO().loss(vae.model, vae.guide, x)
        pyro.set_rng_seed(seed)
        z = vae.encode(x).rsample()
        divergences.append(loss + vae.decode(z).log_prob(x).sum().item())
    assert divergences[0] == pytest.approx(divergences[1], rel=1e-4)
    assert divergences[0] == pytest.approx(
        kl_divergence(vae.encode(x), vae.prior().expand((4,))).sum().item(), rel=1e-4
    )


def test_pairs_without_a_closed_form_stay_unknown() -> None:
    q = POSTERIORS["MultivariateNormalPosterior"]()(torch.randn(E))
    with pytest.raises(NotImplementedError):
        kl_divergence(q, torch.distributions.Independent(torch.distributions.Laplace(torch.zeros(D), torch.ones(D)), 1))


def test_covariances_are_those_of_the_networks_output() -> None:
    x = torch.randn(5, E)
    full = pv.MultivariateNormalPosterior(nn.Linear(E, 2 * 3 + 3), min_scale=0.1)
    out = full.network(x)
    expected = torch.diag_embed(0.1 + (out[:, 3:6] / 2).exp())
    expected[:, 1, 0], expected[:, 2, 0], expected[:, 2, 1] = out[:, 6], out[:, 7], out[:, 8]
    torch.testing.assert_close(full(x).covariance_matrix, expected @ expected.mT)
    low = pv.LowRankNormalPosterior(nn.Linear(E, 4 * 3), rank=2, min_scale=0.1)
    out = low.network(x)
    factor = out[:, 6:].reshape(5, 3, 2)
    expected = factor @ factor.mT + torch.diag_embed(0.1**2 + out[:, 3:6].exp())
    torch.testing.assert_close(low(x).covariance_matrix, expected)


def test_networks_of_another_width_are_refused() -> None:
    x = torch.zeros(2, E)
    with pytest.raises(ValueError, match=r"2 \* D \+ D \* \(D - 1\) / 2 .* got 6"):
        pv.MultivariateNormalPosterior(nn.Linear(E, 6))(x)
    with pytest.raises(ValueError, match=r"\(2 \+ 2\) \* latent_dim .* got 6"):
        pv.LowRankNormalPosterior(nn.Linear(E, 6), rank=2)(x)
    with pytest.raises(ValueError, match=r"2 \* latent_dim \+ 3 .* got 6"):
        pv.FlowPosterior(nn.Linear(E, 6), pv.autoregressive_flow(D, context_dim=3), context_dim=3)(x)
    with pytest.raises(ValueError, match=r"context_dim: expected 3, that of the flow, got 0"):
        pv.FlowPosterior(nn.Linear(E, 2 * D + 3), pv.autoregressive_flow(D, context_dim=3))
    with pytest.raises(ValueError, match=r"network: expected an output width of 6, .* got 4.* latent_dim=2"):
        pv.FlowPosterior(nn.Linear(E, 4), pv.autoregressive_flow(3))(x)
    with pytest.raises(ValueError, match=r"network: expected in_features=8, .* got 4"):
        pv.DiagonalNormalPosterior(nn.Linear(4, 4))(torch.zeros(2, 4), mask=torch.ones(2, 4, dtype=torch.bool))
    for moment in ("mean", "variance"):
        with pytest.raises(NotImplementedError, match=rf"{moment}: .* a flow, which has none"):
            getattr(pv.FlowPosterior(nn.Linear(E, 4), pv.autoregressive_flow(2))(x), moment)
    with pytest.raises(TypeError, match=r"flow: expected a flow of zuko, .* got Linear"):
        pv.FlowPosterior(nn.Linear(E, 6), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="rank: expected an integer of at least 1, got 0"):
        pv.LowRankNormalPosterior(nn.Linear(E, 6), rank=0)
