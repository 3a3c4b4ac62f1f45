"""Objectives that treat the KL term in their own way: free bits, total correlation, maximum mean discrepancy."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

import pyro_vae as pv
from pyro_vae.infer.objectives.mmd import squared_mmd
from tests.helpers.linear_gaussian import linear_gaussian
from tests.helpers.stories import X, chain_guide, chain_model, normal_guide, normal_model, trains_alike

LOC = torch.tensor([[0.0, 1.0, 0.3], [0.5, -1.0, 0.1], [-0.2, 2.0, 0.2], [0.1, 0.7, -0.4]])
SCALE = torch.tensor([0.9, 0.3, 1.0])


def model(x: Tensor, size: int | None = None, beta: Any = 1.0) -> None:
    weight = pyro.param("weight", torch.tensor(1.0))
    with pyro.plate("data", size or len(x), subsample=x):
        with poutine.scale(scale=beta):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(weight * z, 1.0).to_event(1), obs=x)


def guide(x: Tensor, size: int | None = None, beta: Any = 1.0) -> None:
    loc, scale = pyro.param("loc", LOC.clone()), pyro.param("scale", SCALE.clone())
    with pyro.plate("data", size or len(x), subsample=x), poutine.scale(scale=beta):
        pyro.sample("z", dist.Normal(loc[: len(x)], scale).to_event(1))


DATA = LOC + 0.5
KL = kl_divergence(dist.Normal(LOC, SCALE), dist.Normal(0.0, 1.0))  # (4, 3)


def value(objective: Any, *args: Any, of: Any = (model, guide), seed: int = 0, **kwargs: Any) -> float:
    pyro.set_rng_seed(seed)
    return float(objective.loss(*of, *args, **kwargs))


def gradient(objective: Any, name: str, **kwargs: Any) -> Tensor:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    objective.loss_and_grads(model, guide, DATA, **kwargs)
    found = pyro.get_param_store()._params[name].grad
    assert found is not None
    return found


# Free bits


@pytest.mark.parametrize("size", [4, 40])
@pytest.mark.parametrize("beta", [1.0, torch.tensor(0.5)])
@pytest.mark.parametrize("per", ["dimension", "site"])
def test_free_bits_has_the_value_of_the_closed_form(per: Any, beta: Any, size: int) -> None:
    floor = 0.5 if per == "dimension" else 3.0
    kl = KL.mean(0) if per == "dimension" else KL.sum(1).mean(0, keepdim=True)
    assert len(set((kl > floor).tolist())) == (2 if per == "dimension" else 1)
    mean_field = value(TraceMeanField_ELBO(), DATA, size=size, beta=beta)
    expected = mean_field + size * float(beta) * (kl.clamp(min=floor) - kl).sum().item()
    assert value(pv.TraceFreeBits_ELBO(floor, per), DATA, size=size, beta=beta) == pytest.approx(expected, rel=1e-5)


def test_a_group_below_the_floor_gets_no_gradient_from_its_kl_term() -> None:
    ours, pyros = (gradient(objective, "loc") for objective in (pv.TraceFreeBits_ELBO(0.5), TraceMeanField_ELBO()))
    above = KL.mean(0) > 0.5
    assert torch.allclose(ours[:, above], pyros[:, above], rtol=1e-4)
    # d KL / d loc = loc
    assert torch.allclose(ours[:, ~above], pyros[:, ~above] - LOC[:, ~above], rtol=1e-3, atol=1e-4)


def test_without_a_floor_it_is_the_elbo() -> None:
    assert value(pv.TraceFreeBits_ELBO(0.0), DATA) == pytest.approx(value(TraceMeanField_ELBO(), DATA), rel=1e-5)
    # The terms of a hierarchy are those of the draw: KL(q(z) || p(z|u)) at a drawn u would be something else.
    of = (chain_model, chain_guide(0.3, 0.9, 0.8, 1.2))
    ours = value(pv.TraceFreeBits_ELBO(0.0, per="site"), X.repeat(50), of=of)
    # The floor 0 may lift the negative draw of a term; with 150 data neither is.
    assert ours == pytest.approx(value(Trace_ELBO(), X.repeat(50), of=of), rel=1e-5)


def test_a_global_latent_variable_counts_once() -> None:
    def with_mean(x: Tensor, size: int) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", size, subsample=x):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def of_mean(x: Tensor, size: int) -> None:
        pyro.sample("mean", dist.Normal(0.5, 0.8))

    kl = kl_divergence(dist.Normal(0.5, 0.8), dist.Normal(0.0, 1.0)).item()
    plain = value(TraceMeanField_ELBO(), X, 30, of=(with_mean, of_mean))
    floored = value(pv.TraceFreeBits_ELBO(2.0), X, 30, of=(with_mean, of_mean))
    assert floored - plain == pytest.approx(2.0 - kl, abs=1e-3)


# Total correlation


def test_its_parts_add_up_to_the_kl_term_draw_by_draw() -> None:
    for sampling in ("stratified", "weighted"):
        for size in (4, 40):
            pyro.set_rng_seed(0)
            parts = pv.TraceTC_ELBO(sampling=sampling).parts(model, guide, DATA, size=size)
            pyro.set_rng_seed(0)
            trace = poutine.trace(guide).get_trace(DATA)
            z = trace.nodes["z"]["value"]
            log_ratio = trace.nodes["z"]["fn"].log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
            assert torch.allclose(sum(parts), log_ratio, atol=1e-4)


def test_with_all_weights_one_it_is_the_elbo() -> None:
    for kwargs in ({}, {"size": 40}, {"beta": 0.5}):
        objective = pv.TraceTC_ELBO(1.0)
        assert value(objective, DATA, **kwargs) == pytest.approx(value(Trace_ELBO(), DATA, **kwargs), rel=1e-5)
    assert torch.allclose(gradient(pv.TraceTC_ELBO(1.0), "loc"), gradient(Trace_ELBO(), "loc"), atol=1e-4)


def test_the_weights_multiply_the_parts() -> None:
    pyro.set_rng_seed(0)
    mutual, total, wise = pv.TraceTC_ELBO().parts(model, guide, DATA)
    expected = value(Trace_ELBO(), DATA) + (2 * mutual + 4 * total - 0.5 * wise).sum().item()
    assert value(pv.TraceTC_ELBO(5.0, alpha=3.0, gamma=0.5), DATA) == pytest.approx(expected, rel=1e-4)


def test_its_parts_are_those_of_numerical_integration() -> None:
    """In two dimensions: q(z) is a mixture of four normals, integrated on a grid."""
    loc, scale = LOC[:, :2].double(), torch.tensor([0.6, 0.4], dtype=torch.float64)
    line = torch.linspace(-6, 6, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    log_q = dist.Normal(loc[:, None], scale).log_prob(grid).sum(-1).logsumexp(0) - math.log(4)
    marginals = dist.Normal(loc[:, None, :], scale).log_prob(line[:, None]).logsumexp(0) - math.log(4)  # (601, 2)
    product = (marginals[:, 0][:, None] + marginals[:, 1][None, :]).flatten()
    log_p = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0).log_prob(grid).sum(-1)
    area = 0.02**2
    expected_total = (log_q.exp() * (log_q - product)).sum() * area
    expected_wise = (log_q.exp() * (product - log_p)).sum() * area
    entropy = -(log_q.exp() * log_q).sum() * area
    expected_mutual = entropy - dist.Normal(loc, scale).entropy().sum(-1).mean()

    def flat_model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))

    def flat_guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, scale).to_event(1))

    many = loc.repeat(30, 1)  # the same aggregate
    pyro.set_rng_seed(0)
    draws = [torch.stack(list(pv.TraceTC_ELBO().parts(flat_model, flat_guide, many))).mean(1) for _ in range(300)]
    found = torch.stack(draws)
    error = found.std(0) / len(found) ** 0.5
    expected = torch.stack([expected_mutual, expected_total, expected_wise])
    assert (error < 0.01).all()
    assert ((found.mean(0) - expected).abs() < 4 * error).all(), (found.mean(0), expected, error)
    assert expected_total > 0.05


def test_stratified_estimates_of_the_aggregate_are_unbiased_over_batches() -> None:
    """Over all batches of 2 of 4 data, at the draws of one datum."""

    def of_model(loc: Tensor) -> None:
        with pyro.plate("data", 4, subsample=loc):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    def of_guide(loc: Tensor) -> None:
        with pyro.plate("data", 4, subsample=loc):
            pyro.sample("z", dist.Normal(loc, SCALE).to_event(1))

    found = []
    for other in (1, 2, 3):
        loc = LOC[[0, other]]
        pyro.set_rng_seed(0)
        mutual, _, _ = pv.TraceTC_ELBO().parts(of_model, of_guide, loc)
        pyro.set_rng_seed(0)
        z = poutine.trace(of_guide).get_trace(loc).nodes["z"]["value"][0]  # the same for each other datum
        densities = dist.Normal(LOC, SCALE).log_prob(z).sum(-1).exp()
        found.append((densities[0].log() - mutual[0]).exp())
    assert torch.stack(found).mean() == pytest.approx(densities.mean().item(), rel=1e-4)
    assert torch.stack(found).std() > 1e-3 * densities.mean()


# Maximum mean discrepancy


def expected_mmd(loc: float, scale: float, lengthscale: float, dims: int) -> float:
    """Of N(loc, scale^2) and N(0, 1) in each of ``dims`` dimensions."""

    def kernel(difference: float, variance: float) -> float:
        total = lengthscale**2 + variance
        return (lengthscale**2 / total) ** (dims / 2) * math.exp(-dims * difference**2 / (2 * total))

    return kernel(0, 2 * scale**2) + kernel(0, 2) - 2 * kernel(loc, scale**2 + 1)


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (0.5, 1.0), (0.0, 0.5), (-0.4, 1.3)])
def test_the_distance_is_that_of_the_closed_form(loc: float, scale: float) -> None:
    pyro.set_rng_seed(0)
    found = torch.stack([squared_mmd(loc + scale * torch.randn(50, 3), torch.randn(50, 3), 1.5) for _ in range(2000)])
    error = found.std() / 2000**0.5
    expected = expected_mmd(loc, scale, 1.5, 3)
    assert error < 2e-3
    assert abs(found.mean() - expected) < 4 * error
    assert (expected > 10 * error) == ((loc, scale) != (0.0, 1.0))


def test_the_objective_is_the_elbo_with_the_distance() -> None:
    elbo = value(pv.TraceMMD(0.0, beta=1.0), DATA)
    assert elbo == pytest.approx(value(Trace_ELBO(), DATA), rel=1e-5)
    pyro.set_rng_seed(0)
    z = poutine.trace(guide).get_trace(DATA).nodes["z"]["value"]
    distance = squared_mmd(z, torch.randn(4, 3))
    for size in (4, 40):
        found = value(pv.TraceMMD(7.0, beta=1.0), DATA, size=size) - value(pv.TraceMMD(0.0, beta=1.0), DATA, size=size)
        assert found == pytest.approx(7 * size * distance.item(), abs=1e-3)


def test_the_default_lengthscale_is_the_square_root_of_the_dimensions() -> None:
    pyro.set_rng_seed(0)
    x, y = torch.randn(2, 10, 4)
    assert squared_mmd(x, y) == squared_mmd(x, y, 2.0)


def test_it_holds_the_aggregate_posterior_to_the_prior() -> None:
    """Without a likelihood: the guide's draws become those of the prior, in mean and in scale."""

    def nothing(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    def shifted(x: Tensor) -> None:
        loc, scale = pyro.param("loc", torch.tensor(1.5)), pyro.param("scale", torch.tensor(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc.expand(len(x), 1), scale).to_event(1))

    pyro.set_rng_seed(0)
    svi = SVI(nothing, shifted, pv.Adam({"lr": 0.03}), pv.TraceMMD(1.0))
    for _ in range(250):
        svi.step(torch.zeros(150))
    assert abs(pyro.param("loc")) < 0.15
    assert pyro.param("scale").item() == pytest.approx(1.0, abs=0.15)


# All of them


ALL = {
    "free bits": lambda: pv.TraceFreeBits_ELBO(0.5),
    "free bits per site": lambda: pv.TraceFreeBits_ELBO(0.5, per="site"),
    "total correlation": lambda: pv.TraceTC_ELBO(4.0),
    "weighted total correlation": lambda: pv.TraceTC_ELBO(4.0, sampling="weighted", num_particles=2),
    "maximum mean discrepancy": lambda: pv.TraceMMD(5.0, beta=0.5),
}


@pytest.mark.parametrize("name", ALL)
def test_a_step_is_captured_and_equal(name: str) -> None:
    assert trains_alike(lambda: (model, guide), ALL[name], DATA) == 1


@pytest.mark.parametrize("name", ALL)
def test_a_vae_trains(name: str) -> None:
    """The exact model is known; none of the objectives leaves it by far."""
    exact = linear_gaussian(n=40)
    pyro.set_rng_seed(0)
    svi = SVI(exact.vae.model, exact.vae.guide, pv.Adam({"lr": 1e-3}), ALL[name]())
    losses = [svi.step(exact.x) for _ in range(20)]
    assert torch.tensor(losses).isfinite().all()


def test_refused_with_a_reason() -> None:
    full = torch.eye(3) + 0.1

    def dependent(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(LOC, full))

    for objective in (pv.TraceFreeBits_ELBO(0.1), pv.TraceTC_ELBO()):
        with pytest.raises(ValueError, match=r"'z': expected independent elements.*MultivariateNormal"):
            objective.loss(model, dependent, DATA)
    assert math.isfinite(value(pv.TraceFreeBits_ELBO(0.1, per="site"), DATA, of=(model, dependent)))
    with pytest.raises(ValueError, match=r"site: expected the name of a latent variable.*\['u', 'z'\], got None"):
        pv.TraceMMD().loss(chain_model, chain_guide(), X)
    with pytest.raises(ValueError, match="at least two data"):
        pv.TraceTC_ELBO().loss(model, guide, DATA[:1])
    with pytest.raises(ValueError, match="at least two data"):
        pv.TraceMMD().loss(model, guide, DATA[:1])
    for make, match in (
        (lambda: pv.TraceFreeBits_ELBO(-1.0), "floor"),
        (lambda: pv.TraceFreeBits_ELBO(1.0, per="latent"), "per: expected"),  # type: ignore[arg-type]
        (lambda: pv.TraceTC_ELBO(-1.0), "beta"),
        (lambda: pv.TraceTC_ELBO(sampling="all"), "sampling"),  # type: ignore[arg-type]
        (lambda: pv.TraceMMD(-1.0), "scale"),
        (lambda: pv.TraceMMD(lengthscale=0.0), "lengthscale"),
    ):
        with pytest.raises(ValueError, match=match):
            make()
    with pytest.raises(ValueError, match="no reparameterised sampler"):
        pv.TraceFreeBits_ELBO().loss(_coin, _coin, X)
    assert math.isfinite(value(pv.TraceFreeBits_ELBO(0.1), X, of=(normal_model, normal_guide())))


def _coin(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Bernoulli(0.5))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda v: pv.TraceIWAE_ELBO(v), "num_particles"),
        (lambda v: pv.TraceRenyi_ELBO(0.5, v), "num_particles"),
        (lambda v: pv.TraceWakeSleep(v), "num_particles"),
        (lambda v: pv.TraceRenyi_ELBO(v), "alpha"),
        (lambda v: pv.TraceWakeSleep(3, v), "wake"),
        (lambda v: pv.TraceFreeBits_ELBO(v), "floor"),
        (lambda v: pv.TraceMMD(v), "scale"),
        (lambda v: pv.TraceTC_ELBO(v), "beta"),
    ],
)
@pytest.mark.parametrize("value", ["0.5", None, True, float("nan")])
def test_options_of_another_type_are_refused(make: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name}: expected .*, got {value!r}"):
        make(value)
