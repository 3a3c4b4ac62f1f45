"""The contract of the priors, held against each of them."""

from __future__ import annotations

import copy
import math
import sys
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import priors
from tests.helpers import check_gradients, check_state_dict, fit_pvalue, total_mass

D = 2


def normal(u: Tensor, *given: Any) -> Any:
    """A posterior without parameters, for VampPrior."""
    return dist.Normal(u[..., :D], 0.4 + 0.3 * u[..., D:].sigmoid()).to_event(1)


PRIORS = {
    "StandardNormalPrior": lambda: pv.StandardNormalPrior(D),
    "MixturePrior": lambda: pv.MixturePrior(D, 3),
    "VampPrior": lambda: pv.VampPrior(normal, torch.randn(4, 2 * D)),
    "FlowPrior (affine)": lambda: pv.FlowPrior(pv.autoregressive_flow(D, hidden_dims=(8,))),
    "FlowPrior (spline)": lambda: pv.FlowPrior(pv.autoregressive_flow(D, transform="spline", hidden_dims=(8,))),
    "FlowPrior (inverse)": lambda: pv.FlowPrior(pv.autoregressive_flow(D, hidden_dims=(8,), inverse=True)),
}
each_prior = pytest.mark.parametrize("name", PRIORS)


def test_every_exported_prior_is_listed() -> None:
    assert set(priors.__all__) - {"fit_prior", "GatedTransition"} == {name.split()[0] for name in PRIORS}


@pytest.mark.parametrize("leading", [(), (5,), (4, 5)])
@each_prior
def test_shapes_with_any_leading_dimensions(name: str, leading: tuple[int, ...]) -> None:
    p = PRIORS[name]()()
    assert (p.batch_shape, p.event_shape) == ((), (D,))
    z = p.sample(leading)
    assert z.shape == (*leading, D)
    assert p.log_prob(z).shape == leading
    assert p.has_rsample or isinstance(p, dist.MixtureSameFamily)


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
    spline = "spline" in name  # costly, and not smooth
    mass = total_mass(PRIORS[name]().double()(), points_of_two=301 if spline else 1001)
    assert mass == pytest.approx(1.0, abs=2e-3 if spline else 1e-6)


@each_prior
def test_samples_agree_with_the_density_and_not_with_a_wrong_one(name: str) -> None:
    p = PRIORS[name]().double()()
    assert fit_pvalue(p) > 1e-3
    stretched = lambda z: p.log_prob(z / 1.3) - D * np.log(1.3)  # noqa: E731
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


def posterior(elements: int = 6) -> pv.DiagonalNormalPosterior:
    return pv.DiagonalNormalPosterior(pv.MLP(elements, 2 * D, hidden_dims=(8,)))


def vae_with(prior: Any, q: Any = None, elements: int = 6) -> pv.VAE:
    likelihood = pv.BernoulliLikelihood(pv.MLP(D, elements, hidden_dims=(8,)))
    return pv.VAE(prior, likelihood, q or posterior(elements))


def bits(n: int, elements: int) -> Tensor:
    return torch.rand(n, elements, generator=torch.Generator().manual_seed(1)).round()


def labels(n: int) -> Tensor:
    return nn.functional.one_hot(torch.arange(n) % 3, 3).float()


def test_a_mixture_is_the_weighted_sum_of_its_components() -> None:
    prior = pv.MixturePrior(D, 3)
    with torch.no_grad():
        prior.weights.logits.copy_(torch.tensor([0.0, 1.0, 2.0]))
    z = torch.randn(5, D)
    terms = torch.stack(
        [dist.Normal(m, s.exp()).log_prob(z).sum(-1) for m, s in zip(prior.loc, prior.log_scale, strict=True)]
    )
    expected = (terms.exp() * torch.tensor([0.0, 1.0, 2.0]).softmax(0)[:, None]).sum(0).log()
    torch.testing.assert_close(prior().log_prob(z), expected)


def test_a_mixture_begins_on_draws() -> None:
    z = torch.randn(50, D) * torch.tensor([5.0, 0.1])
    prior = pv.MixturePrior(D, 10)
    prior.initialize(z)
    assert all((m == z).all(1).any() for m in prior.loc)
    torch.testing.assert_close((prior.log_scale[0, 0] - prior.log_scale[0, 1]).exp(), z[:, 0].std() / z[:, 1].std())
    with pytest.raises(ValueError, match=r"z: expected shape \(N, 2\), got \(50,\)"):
        prior.initialize(z[:, 0])


def test_a_mixture_takes_the_components_of_a_fit() -> None:
    z = np.random.default_rng(0).normal(size=(300, D)) * [1.0, 0.2] + 3.0 * (np.arange(300)[:, None] % 3)
    fit = GaussianMixture(3, covariance_type="diag", random_state=0).fit(z)
    prior = pv.MixturePrior(D, 3)
    prior.set_components(fit.weights_, fit.means_, fit.covariances_**0.5)
    expected = torch.as_tensor(fit.score_samples(z)).float()
    torch.testing.assert_close(prior().log_prob(torch.as_tensor(z).float()), expected, rtol=1e-4, atol=1e-4)


def test_components_that_fit_no_mixture_are_refused() -> None:
    prior, ones = pv.MixturePrior(D, 3), torch.ones(3, D)
    for components, message in (
        ((torch.ones(3), ones, ones), r"weights: expected 3 probabilities above 0 that sum to 1"),
        (([0.2, 0.3, 0.5], ones[:2], ones), r"loc: expected shape \(3, 2\), a row for each component, got \(2, 2\)"),
        (([0.2, 0.3, 0.5], ones, 0 * ones), r"scale: expected finite numbers above 0, got 0"),
        (([0.2, 0.3, 0.5], ones * math.nan, ones), r"loc: expected finite numbers, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            prior.set_components(*components)
    conditional = pv.MixturePrior(D, 3, network=nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"weights: expected a prior whose weights are parameters"):
        conditional.set_components([0.2, 0.3, 0.5], ones, ones)


def test_a_vamp_prior_is_the_mixture_of_its_posteriors_and_owns_none_of_their_parameters() -> None:
    q = posterior()
    prior = pv.VampPrior(q, torch.rand(4, 6))
    z = torch.randn(5, D)
    expected = torch.stack([q(u).log_prob(z) for u in prior.pseudo_inputs]).exp().mean(0).log()
    torch.testing.assert_close(prior().log_prob(z), expected)
    assert {name for name, _ in prior.named_parameters()} == {"pseudo_inputs", "weights.logits"}
    prior().log_prob(z).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in q.parameters())


def test_a_copied_vae_has_a_vamp_prior_of_its_own_posterior() -> None:
    vae = vae_with(pv.StandardNormalPrior(D))
    vae.prior = pv.VampPrior(vae.posterior, torch.rand(4, 6))
    other = copy.deepcopy(vae)
    before = other.prior().log_prob(torch.zeros(D)).item()
    with torch.no_grad():
        for p in vae.posterior.parameters():
            p.add_(1.0)
    assert other.prior().log_prob(torch.zeros(D)).item() == before
    with torch.no_grad():
        for p in other.posterior.parameters():
            p.add_(1.0)
    assert other.prior().log_prob(torch.zeros(D)).item() != before


def test_a_step_evaluates_the_posterior_once_at_the_data_and_once_at_the_pseudo_inputs() -> None:
    q = posterior()
    sizes: list[int] = []
    q.register_forward_hook(lambda module, args, out: sizes.append(len(args[0])))
    vae = vae_with(pv.VampPrior(q, torch.rand(4, 6)), q)
    svi = SVI(vae.model, vae.guide, pv.Adam({"lr": 1e-3}), Trace_ELBO())
    x = bits(7, 6)
    for _ in range(2):
        sizes.clear()
        svi.step(x)
    assert sorted(sizes) == [4, 7]


@pytest.mark.parametrize("name", ["mixture", "vamp", "flow"])
def test_conditional_priors_depend_on_what_is_given(name: str) -> None:
    q = posterior()
    prior: Any = {
        "mixture": lambda: pv.MixturePrior(D, 4, network=nn.Linear(3, 4)),
        "vamp": lambda: pv.VampPrior(q, torch.rand(4, 6), network=nn.Linear(3, 4)),
        "flow": lambda: pv.FlowPrior(pv.autoregressive_flow(D, context_dim=3), given=0),
    }[name]()
    y = labels(6)
    p = prior(y)
    assert (p.batch_shape, p.event_shape) == ((6,), (D,))
    values = p.log_prob(torch.ones(6, D))
    torch.testing.assert_close(values[:3], values[3:])  # the same labels
    assert len(set(values[:3].tolist())) == 3
    vae = vae_with(prior, q)
    assert vae.sample(6, y).shape == (6, 6)
    svi = pv.CompiledSVI(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), Trace_ELBO(), compile="graph", check_steps=1)
    assert all(np.isfinite(svi.step(bits(6, 6), y)) for _ in range(4))
    assert svi.captures == 1
    with pytest.raises(ValueError, match=r"given\[0\]: expected what the prior depends on"):
        prior()


@each_prior
def test_training_is_captured_and_equals_pyros(name: str) -> None:
    x = bits(20, 2 * D)
    pyro.set_rng_seed(0)
    first = vae_with(PRIORS[name](), elements=2 * D)
    second = copy.deepcopy(first)
    losses = []
    for vae, make in ((first, SVI), (second, pv.CompiledSVI)):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        options = {} if make is SVI else {"compile": "graph", "check_steps": 1, "on_refusal": "raise"}
        svi = make(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), Trace_ELBO(), **options)
        losses.append([svi.step(x) for _ in range(6)])
    assert svi.captures == 1
    assert losses[0] == losses[1]
    for p, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, other)


@each_prior
def test_bounds_and_samples_with_each_prior(name: str) -> None:
    vae = vae_with(PRIORS[name](), elements=2 * D)
    elbo, bound = pv.bounds(vae.model, vae.guide, bits(9, 2 * D), num_particles=50)
    assert elbo.mean() < bound.mean() < 0
    assert vae.sample(3).shape == (3, 2 * D)


def test_a_fitted_prior_finds_the_aggregate_posterior() -> None:
    class Encoder(nn.Module):
        """z is where x is, with a scale of 0.1."""

        prior = pv.StandardNormalPrior(D)

        def encode(self, x: Tensor) -> Any:
            return dist.Normal(x, 0.1).to_event(1)

    torch.manual_seed(0)
    centers = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0]])
    x = centers[torch.randint(3, (600,))]
    vae = Encoder()
    prior = pv.fit_prior(
        vae, x[:500], x[500:], prior=pv.MixturePrior(D, 8), epochs=40, batch_size=100, learning_rate=0.1
    )
    z = vae.encode(x[500:]).sample((50,))
    exact = -(D / 2) * np.log(2 * np.pi * np.e * 0.1**2) - np.log(3)  # minus the entropy of the three clusters
    assert prior().log_prob(z).mean().item() == pytest.approx(exact, abs=0.1)
    assert vae.prior().log_prob(z).mean().item() < exact - 3


def test_a_fitted_prior_that_is_no_better_is_not_returned() -> None:
    vae = vae_with(pv.StandardNormalPrior(D))
    with torch.no_grad():
        for p in vae.posterior.parameters():
            p.zero_()  # q(z|x) is the standard normal for all x
    x = bits(40, 6)
    worse = pv.MixturePrior(D, 1)
    kept = pv.fit_prior(vae, x[:20], x[20:], prior=worse, epochs=1, learning_rate=1e-6)
    assert kept is vae.prior
    with pytest.raises(ValueError, match=r"validation: expected at least one datum"):
        pv.fit_prior(vae, x, x[:0])


def test_fitting_a_prior_leaves_nothing_but_the_prior() -> None:
    """No gradient, to which the next training step would add; and the VAE's own prior as it was, if that was better."""
    x = bits(40, 6)
    vae = vae_with(pv.MixturePrior(D, 3))
    before = copy.deepcopy(vae.prior.state_dict())
    for prior in (pv.MixturePrior(D, 3), pv.VampPrior(vae.posterior, x[:4]), vae.prior):
        new = pv.fit_prior(vae, x[:20], x[20:], prior=prior, epochs=1, learning_rate=5.0)
        assert new is vae.prior
        assert all(p.grad is None for p in [*prior.parameters(), *vae.parameters()])
        assert all(torch.equal(value, before[name]) for name, value in vae.prior.state_dict().items())
    with pytest.raises(ValueError, match=r"prior: expected a prior with parameters to train, got StandardNormalPrior"):
        pv.fit_prior(vae, x, x, prior=pv.StandardNormalPrior(D))


def test_a_fitted_flow_and_a_conditional_one() -> None:
    torch.manual_seed(0)
    vae = vae_with(pv.StandardNormalPrior(D))
    with torch.no_grad():
        vae.posterior.network.output.bias.add_(2.0)
    x, y = bits(60, 6), labels(60)
    flow = pv.FlowPrior(pv.autoregressive_flow(D, hidden_dims=(16,)))
    new = pv.fit_prior(vae, x[:40], x[40:], prior=flow, epochs=20, batch_size=20)
    assert new is flow
    conditional = pv.FlowPrior(pv.autoregressive_flow(D, context_dim=3, hidden_dims=(16,)), given=0)
    new = pv.fit_prior(vae, (x[:40], y[:40]), (x[40:], y[40:]), prior=conditional, epochs=20, batch_size=20)
    assert new is conditional


def test_the_first_flow_of_a_process_leaves_validation_on(monkeypatch):
    """zuko switches off the validation of all distributions of torch as it is imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "zuko"]:
        monkeypatch.delitem(sys.modules, name)
    constraints = torch.distributions.Distribution.arg_constraints
    monkeypatch.setattr(torch.distributions.Distribution, "arg_constraints", constraints)
    pv.autoregressive_flow(2)
    with pytest.raises(ValueError, match="support"):
        torch.distributions.Bernoulli(0.5).log_prob(torch.tensor(0.3))


def test_bad_parts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    q = posterior()
    for make, message in (
        (lambda: pv.MixturePrior(D, 0), "num_components: expected an integer of at least 1, got 0"),
        (lambda: pv.VampPrior(q, torch.rand(6)), r"pseudo_inputs: expected shape \(K, \*E\)"),
        (lambda: pv.VampPrior(q, torch.rand(0, 6)), r"pseudo_inputs: expected shape \(K, \*E\)"),
        (lambda: pv.VampPrior(q, torch.rand(4, 6), labels(3)), r"pseudo_given\[0\]: expected 4 rows"),
        (lambda: pv.autoregressive_flow(D, transform="cubic"), "transform: expected 'affine' or 'spline', got 'cubic'"),
        (lambda: pv.MixturePrior(D, 4, network=nn.Linear(3, 5))(labels(2)), "network: expected an output width of 4"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="pseudo_inputs: expected floating-point values"):
        pv.VampPrior(q, torch.ones(4, 6, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"pseudo_inputs: .* got a number, 50. Take rows .* train_x\[:50\]"):
        pv.VampPrior(q, 50)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"posterior: expected a module whose forward returns a distribution"):
        pv.VampPrior(nn.Linear(6, 2 * D), torch.rand(4, 6))()
    with pytest.raises(TypeError, match=r"flow: expected a flow of zuko, got int. Make one by"):
        pv.FlowPrior(2)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro_vae\[flows\]'"):
        pv.autoregressive_flow(D)
