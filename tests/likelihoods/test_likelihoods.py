"""The contract of the likelihoods, held against each of them."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyro_vae as pv
from pyro_vae import likelihoods
from tests.helpers import check_gradients, check_state_dict, fit_pvalue, total_mass

D, E = 2, 3


class Case(NamedTuple):
    """A likelihood: what makes it, its network's numbers per element, values it refuses, three elements it takes."""

    make: Callable[..., Any]
    parameters: int
    refused: dict[float, str]
    takes: tuple[float, float, float] = (0.0, 1.0, 1.0)


COUNTS = {0.5: "got 0.5. Round it", -1.0: "got -1", math.nan: "got nan", math.inf: "got inf"}
PROPORTIONS = {0.0: "got 0. Rescale", 1.0: "got 1. Rescale", 1.5: "got 1.5", math.nan: "got nan"}
UNIT = {255.0: "Rescale", 1.5: "got 1.5. Rescale", -0.1: "got -0.1", math.nan: "got nan"}
LEVELS = {0.3: "got 0.3. Divide", 1.25: "got 1.25. Divide", -0.25: "got -0.25", math.nan: "got nan"}
FINITE = {math.inf: "got inf", math.nan: "got nan"}
LIKELIHOODS = {
    "BernoulliLikelihood": Case(
        pv.BernoulliLikelihood, 1, {0.37: "got 0.37. Binarize it", math.nan: "got nan", 2.0: "got 2", -1.0: "got -1"}
    ),
    "BetaLikelihood": Case(pv.BetaLikelihood, 1, PROPORTIONS, (0.1, 0.5, 0.9)),
    "BetaLikelihood predicted": Case(
        functools.partial(pv.BetaLikelihood, concentration="predicted", min_concentration=2.0),
        2,
        PROPORTIONS,
        (0.1, 0.5, 0.9),
    ),
    "CategoricalLikelihood": Case(
        functools.partial(pv.CategoricalLikelihood, num_classes=4),
        4,
        {4.0: "got 4. Number the classes", 0.5: "got 0.5", -1.0: "got -1", math.nan: "got nan"},
        (0.0, 1.0, 3.0),
    ),
    "ContinuousBernoulliLikelihood": Case(pv.ContinuousBernoulliLikelihood, 1, UNIT),
    "DiscretizedLogisticLikelihood": Case(
        functools.partial(pv.DiscretizedLogisticLikelihood, num_levels=5), 2, LEVELS, (0.0, 0.25, 1.0)
    ),
    "DiscretizedLogisticLikelihood mixture": Case(
        functools.partial(pv.DiscretizedLogisticLikelihood, num_levels=5, num_components=3), 9, LEVELS, (0.0, 0.25, 1.0)
    ),
    "GaussianLikelihood fixed": Case(functools.partial(pv.GaussianLikelihood, scale=0.5), 1, FINITE),
    "GaussianLikelihood shared": Case(functools.partial(pv.GaussianLikelihood, scale="shared"), 1, FINITE),
    "GaussianLikelihood per-dimension": Case(
        functools.partial(pv.GaussianLikelihood, scale="per-dimension"), 1, FINITE
    ),
    "GaussianLikelihood predicted": Case(functools.partial(pv.GaussianLikelihood, scale="predicted"), 2, FINITE),
    "LaplaceLikelihood": Case(pv.LaplaceLikelihood, 1, FINITE),
    "LaplaceLikelihood predicted": Case(functools.partial(pv.LaplaceLikelihood, scale="predicted"), 2, FINITE),
    "NegativeBinomialLikelihood": Case(pv.NegativeBinomialLikelihood, 1, COUNTS, (0.0, 1.0, 5.0)),
    "NegativeBinomialLikelihood predicted": Case(
        functools.partial(pv.NegativeBinomialLikelihood, concentration="predicted"), 2, COUNTS, (0.0, 1.0, 5.0)
    ),
    "PoissonLikelihood": Case(pv.PoissonLikelihood, 1, COUNTS, (0.0, 1.0, 5.0)),
    "StudentTLikelihood": Case(functools.partial(pv.StudentTLikelihood, df=10.0), 1, FINITE),
    "StudentTLikelihood per-dimension": Case(
        functools.partial(pv.StudentTLikelihood, df=10.0, scale="per-dimension"), 1, FINITE
    ),
    "ZeroInflatedNegativeBinomialLikelihood": Case(
        pv.ZeroInflatedNegativeBinomialLikelihood, 2, COUNTS, (0.0, 1.0, 5.0)
    ),
    "ZeroInflatedNegativeBinomialLikelihood predicted": Case(
        functools.partial(pv.ZeroInflatedNegativeBinomialLikelihood, concentration="predicted"),
        3,
        COUNTS,
        (0.0, 1.0, 5.0),
    ),
}
LEADING = [(), (5,), (4, 5)]

each_likelihood = pytest.mark.parametrize("name", LIKELIHOODS)


def likelihood_of(name: str, elements: int = E) -> Any:
    case = LIKELIHOODS[name]
    return case.make(pv.MLP(D, case.parameters * elements, hidden_dims=(4,)))


def test_every_exported_likelihood_is_listed() -> None:
    exported = {name for name in likelihoods.__all__ if name.endswith("Likelihood")}
    of_its_own = {"MixedLikelihood"}  # its columns differ: test_mixed.py
    assert exported - of_its_own == {name.split()[0] for name in LIKELIHOODS}


@pytest.mark.parametrize("leading", LEADING)
@each_likelihood
def test_shapes_with_any_leading_dimensions(name: str, leading: tuple[int, ...]) -> None:
    p = likelihood_of(name)(torch.randn(*leading, D))
    assert (p.batch_shape, p.event_shape) == (leading, (E,))
    x = p.sample()
    assert x.shape == (*leading, E)
    assert p.log_prob(x).shape == leading
    assert p.log_prob(x).isfinite().all()
    assert p.mean.shape == p.variance.shape == (*leading, E)
    assert p.sample((7,)).shape == (7, *leading, E)
    expanded = p.expand((6, *leading))
    assert (expanded.batch_shape, expanded.event_shape) == ((6, *leading), (E,))
    torch.testing.assert_close(expanded.log_prob(x), p.log_prob(x).expand(6, *leading), rtol=1e-6, atol=0)


@each_likelihood
def test_every_parameter_gets_a_gradient(name: str) -> None:
    part = likelihood_of(name)
    p = part(torch.randn(5, D))
    check_gradients(part, p.log_prob(p.sample()))


@each_likelihood
def test_state_dict_round_trip(name: str, tmp_path: Any) -> None:
    z = torch.randn(5, D)
    x = likelihood_of(name)(z).sample()
    check_state_dict(lambda: likelihood_of(name), lambda part: part(z).log_prob(x), tmp_path / "part.pt")


@each_likelihood
def test_double_precision_throughout(name: str) -> None:
    p = likelihood_of(name).double()(torch.randn(5, D, dtype=torch.float64))
    assert p.sample().dtype == p.mean.dtype == p.log_prob(p.sample()).dtype == torch.float64


@each_likelihood
def test_densities_stay_in_float32_under_autocast(name: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        p = likelihood_of(name)(torch.randn(5, D))
        assert p.log_prob(p.sample()).dtype == torch.float32


@each_likelihood
def test_density_integrates_to_one(name: str) -> None:
    for z in (torch.zeros(D), torch.ones(D)):
        p = likelihood_of(name, elements=1).double()(z.double())
        assert total_mass(p) == pytest.approx(1.0, abs=1e-6)


@each_likelihood
def test_samples_agree_with_the_density(name: str) -> None:
    p = likelihood_of(name, elements=1).double()(torch.ones(D).double())
    assert fit_pvalue(p) > 1e-3


@each_likelihood
def test_samples_of_a_wrong_density_are_seen(name: str) -> None:
    """The planted fault: the parameters of the network's last layer are off."""
    likelihood = likelihood_of(name, elements=1).double()
    p = likelihood(torch.ones(D).double())
    with torch.no_grad():
        likelihood.network.output.bias += torch.arange(1.0, 1.0 + len(likelihood.network.output.bias))
    wrong = likelihood(torch.ones(D).double())
    assert fit_pvalue(p, wrong.log_prob) < 1e-6


@each_likelihood
def test_elements_are_independent(name: str) -> None:
    """In the density, so that one element's integral and fit tell, and in samples."""
    p = likelihood_of(name)(torch.ones(D))
    x = p.sample((40_000,))
    torch.testing.assert_close(p.log_prob(x), p.base_dist.log_prob(x).sum(-1))
    assert x.T.corrcoef().triu(1).abs().max() < 4.5 / len(x) ** 0.5


@each_likelihood
def test_mean_and_variance_are_those_of_the_samples(name: str) -> None:
    p = likelihood_of(name).double()(torch.ones(D).double())
    x = p.sample((40_000,))
    assert ((x.mean(0) - p.mean) / (p.variance / len(x)).sqrt()).abs().max() < 4.5
    squares = (x - p.mean).square()
    assert ((squares.mean(0) - p.variance) / (squares.std(0) / len(x) ** 0.5)).abs().max() < 4.5


@each_likelihood
def test_event_shape_is_the_shape_of_one_datum(name: str) -> None:
    """One keyword with one meaning in every likelihood; None is a vector as long as the network's output."""
    make, parameters, *_ = LIKELIHOODS[name]
    network = nn.Sequential(nn.Linear(D, parameters * 6), nn.Unflatten(-1, (parameters, 2, 3)))
    for shape in ((1, 2, 3), [np.int64(1), np.int32(2), 3], torch.Size((1, 2, 3))):
        likelihood = make(network, event_shape=shape)
        assert likelihood.event_shape == (1, 2, 3)
        p = likelihood(torch.zeros(5, D))
        assert (p.batch_shape, p.event_shape) == ((5,), (1, 2, 3))
        assert p.log_prob(p.sample()).shape == (5,)
        with pytest.raises(ValueError, match=r"x: expected event shape \(1, 2, 3\), that of p\(x\|z\)"):
            p.log_prob(torch.ones(5, 2, 3))
    for wrong in (3, (), (0,), (2.0, 3), "123", np.int64(3), (True,), torch.ones(2)):
        with pytest.raises(ValueError, match=r"event_shape: expected a sequence of at least one integer"):
            make(network, event_shape=wrong)
    for other in ((1, 3, 2), (6,), (2, 1, 2, 3)):
        with pytest.raises(ValueError, match=r"network: expected output of shape .* event_shape being"):
            make(network, event_shape=other)(torch.zeros(5, D))
    with pytest.raises(TypeError, match=r"event_dim"):
        make(network, event_dim=3)


@each_likelihood
def test_output_bias_starts_at_the_mean_of_the_data(name: str) -> None:
    likelihood = likelihood_of(name)
    with torch.no_grad():
        likelihood.network.output.weight.zero_()
        likelihood.network.output.bias.normal_()
    x = likelihood(torch.zeros(2000, D)).sample()
    again = likelihood_of(name)
    nn.init.zeros_(again.network.output.weight)
    again.initialize_output_bias(x)
    torch.testing.assert_close(again(torch.zeros(D)).mean, x.mean(0), rtol=1e-4, atol=1e-3)


@each_likelihood
def test_output_bias_of_constant_elements_is_finite(name: str) -> None:
    likelihood = likelihood_of(name)
    x = torch.tensor([LIKELIHOODS[name].takes] * 2)
    likelihood.initialize_output_bias(x)
    assert likelihood(torch.zeros(D)).log_prob(x).isfinite().all()


@each_likelihood
def test_data_outside_the_support_are_refused_and_have_density_zero(name: str) -> None:
    likelihood, kind = likelihood_of(name), name.split()[0]
    good = likelihood(torch.zeros(4, D)).sample()
    for bad, message in LIKELIHOODS[name].refused.items():
        x = good.clone()
        x[2, 1] = bad
        with pytest.raises(ValueError, match=rf"x: expected .* for {kind}, .*{message}"):
            likelihood(torch.zeros(4, D)).log_prob(x)
        with pyro.validation_enabled(False):
            log_prob = likelihood(torch.zeros(4, D)).log_prob(x)
        assert log_prob[2] == -math.inf
        assert log_prob[[0, 1, 3]].isfinite().all()
    for data in (torch.ones(0, E), torch.full((2, E), math.nan)):
        with pytest.raises(ValueError, match=r"x: expected (at least one datum|finite values)"):
            likelihood.initialize_output_bias(data)


@each_likelihood
def test_what_is_given_and_not_used_changes_nothing(name: str) -> None:
    likelihood, z = likelihood_of(name), torch.randn(5, D)
    x = likelihood(z).sample()
    assert torch.equal(likelihood(z, torch.ones(5, 7), "a word").log_prob(x), likelihood(z).log_prob(x))


@each_likelihood
def test_a_vae_with_it_trains_in_pyro_and_captured(name: str) -> None:
    x = likelihood_of(name)(torch.randn(20, D)).sample()
    losses = []
    for kind, options in ((SVI, {}), (pv.CompiledSVI, {"compile": "graph", "check_steps": 2})):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        vae = pv.VAE(pv.StandardNormalPrior(D), likelihood_of(name), pv.DiagonalNormalPosterior(pv.MLP(E, 2 * D, (4,))))
        before = copy.deepcopy(vae.state_dict())
        svi = kind(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), Trace_ELBO(), **options)
        losses.append([svi.step(x, size=100) for _ in range(4)])
        assert all(not torch.equal(value, before[key]) for key, value in vae.state_dict().items())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert svi.captures > 0


@each_likelihood
def test_wrong_shapes_and_dtypes_are_refused(name: str) -> None:
    likelihood = likelihood_of(name)
    p = likelihood(torch.zeros(4, D))
    with pytest.raises(ValueError, match=r"x: expected event shape \(3,\), that of p\(x\|z\), got .* \(4, 1\)"):
        p.log_prob(torch.ones(4, 1))  # would broadcast
    with pytest.raises(TypeError, match=r"x: expected floating-point values .* got torch.int64"):
        p.log_prob(torch.ones(4, E, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"x: expected torch.float32, .* got torch.float16"):
        p.log_prob(torch.ones(4, E, dtype=torch.float16))
    with pytest.raises(TypeError, match=r"x: expected a torch.Tensor, got list"):
        p.log_prob([1.0, 0.0, 1.0])
    with pytest.raises(TypeError, match=r"z: expected torch.float32, the dtype of the parameters, got torch.float64"):
        likelihood(torch.zeros(2, D, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"network: expected an output bias of shape"):
        likelihood.initialize_output_bias(torch.full((5, E + 1), LIKELIHOODS[name].takes[1]))


@each_likelihood
def test_a_network_without_an_output_bias_is_refused_where_one_is_needed(name: str) -> None:
    case = LIKELIHOODS[name]
    options = {"event_shape": (E,)}
    likelihood = case.make(nn.Sequential(nn.Linear(D, case.parameters * E)), **options)
    x = likelihood(torch.zeros(5, D)).sample()
    with pytest.raises(ValueError, match=r"network: expected a last layer with a bias"):
        likelihood.initialize_output_bias(x)
