"""The contract of the posteriors, held against each of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae import posteriors
from tests.helpers import check_gradients, check_state_dict, fit_pvalue, total_mass

D, E = 2, 3
POSTERIORS = {
    "DiagonalNormalPosterior": lambda: pv.DiagonalNormalPosterior(pv.MLP(E, 2 * D, hidden_dims=(4,))),
}
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
    check_gradients(posterior, posterior(torch.rand(5, E)).log_prob(torch.randn(5, D)))
    posterior.zero_grad()
    check_gradients(posterior, posterior(torch.rand(5, E)).rsample())


@each_posterior
def test_state_dict_round_trip(name: str, tmp_path: Any) -> None:
    x, z = torch.rand(5, E), torch.randn(5, D)
    check_state_dict(POSTERIORS[name], lambda posterior: posterior(x).log_prob(z), tmp_path / "posterior.pt")


@each_posterior
def test_double_precision_throughout(name: str) -> None:
    q = POSTERIORS[name]().double()(torch.rand(5, E, dtype=torch.float64))
    assert q.rsample().dtype == q.log_prob(q.sample()).dtype == torch.float64


@each_posterior
def test_densities_stay_in_float32_under_autocast(name: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        q = POSTERIORS[name]()(torch.rand(5, E))
        assert q.log_prob(q.rsample()).dtype == torch.float32


@each_posterior
def test_density_integrates_to_one(name: str) -> None:
    q = POSTERIORS[name]().double()(torch.rand(E).double())
    assert total_mass(q) == pytest.approx(1.0, abs=1e-6)


@each_posterior
def test_samples_agree_with_the_density_and_not_with_a_wrong_one(name: str) -> None:
    q = POSTERIORS[name]().double()(torch.rand(E).double())
    assert fit_pvalue(q) > 1e-3
    assert fit_pvalue(q, lambda z: q.log_prob(z / 1.2) - D * math.log(1.2)) < 1e-6


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
