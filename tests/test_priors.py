"""The contract of the priors, held against each of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae import priors
from tests.helpers import check_gradients, check_state_dict, fit_pvalue, total_mass

D = 2
PRIORS = {"StandardNormalPrior": lambda: pv.StandardNormalPrior(D)}
each_prior = pytest.mark.parametrize("name", PRIORS)


def test_every_exported_prior_is_listed() -> None:
    assert set(priors.__all__) == {name.split()[0] for name in PRIORS}


@pytest.mark.parametrize("leading", [(), (5,), (4, 5)])
@each_prior
def test_shapes_with_any_leading_dimensions(name: str, leading: tuple[int, ...]) -> None:
    p = PRIORS[name]()()
    assert (p.batch_shape, p.event_shape) == ((), (D,))
    z = p.sample(leading)
    assert z.shape == (*leading, D)
    assert p.log_prob(z).shape == leading
    assert p.has_rsample


@each_prior
def test_every_parameter_gets_a_gradient(name: str) -> None:
    prior = PRIORS[name]()
    if list(prior.parameters()):
        check_gradients(prior, prior().log_prob(torch.randn(5, D)))


@each_prior
def test_state_dict_round_trip(name: str, tmp_path: Any) -> None:
    z = torch.randn(5, D)
    check_state_dict(PRIORS[name], lambda prior: prior().log_prob(z), tmp_path / "prior.pt")


@each_prior
def test_double_precision_throughout(name: str) -> None:
    p = PRIORS[name]().double()()
    assert p.sample().dtype == p.log_prob(p.sample()).dtype == torch.float64


@each_prior
def test_density_integrates_to_one(name: str) -> None:
    assert total_mass(PRIORS[name]().double()()) == pytest.approx(1.0, abs=1e-6)


@each_prior
def test_samples_agree_with_the_density_and_not_with_a_wrong_one(name: str) -> None:
    p = PRIORS[name]().double()()
    assert fit_pvalue(p) > 1e-3
    stretched = lambda z: p.log_prob(z / 1.2) - D * np.log(1.2)  # noqa: E731
    assert fit_pvalue(p, stretched) < 1e-6


def test_the_standard_normal_is_one() -> None:
    z = torch.randn(7, D)
    expected = -0.5 * z.square().sum(-1) - D * 0.5 * np.log(2 * np.pi)
    torch.testing.assert_close(pv.StandardNormalPrior(D)().log_prob(z), expected)


def test_bad_arguments_are_refused() -> None:
    assert pv.StandardNormalPrior(np.int64(3))().event_shape == (3,)
    for wrong in (0, -1, 2.0, "2", True, None):
        with pytest.raises(ValueError, match=r"latent_dim: expected an integer of at least 1, got"):
            pv.StandardNormalPrior(wrong)
