"""The gradient that sticks the landing, against exact posteriors and closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.distributions.transforms import AffineTransform, ExpTransform
from pyro.distributions.transforms.planar import ConditionedPlanar
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

import pyro_vae as pv

X = torch.tensor([0.3, -1.2, 2.0])


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor, scale: float = 0.5**0.5) -> None:
    scales = pyro.param("scale", torch.tensor(scale))
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, scales))


def gradients(
    objective: Any, model: Callable[..., Any], guide: Callable[..., Any], seed: int = 0, draws: int = 1
) -> dict[str, Tensor]:
    """Of ``draws`` particles' mean, by parameter."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    particles = objective(num_particles=draws, vectorize_particles=draws > 1, max_plate_nesting=1)
    particles.differentiable_loss(model, guide, X).backward()
    return {name: value.grad for name, value in pyro.get_param_store().named_parameters() if value.grad is not None}


def many(objective: Any, model: Callable[..., Any], guide: Callable[..., Any]) -> dict[str, Tensor]:
    """The means of 100,000 gradients, and their standard errors, stacked."""
    batches = [gradients(objective, model, guide, seed, draws=2000) for seed in range(50)]
    stacked = {name: torch.stack([batch[name] for batch in batches]) for name in batches[0]}
    return {name: torch.stack([g.mean(0), g.std(0) / 50**0.5]) for name, g in stacked.items()}


@pytest.mark.parametrize("seed", range(3))
def test_no_gradient_where_the_guide_is_the_posterior(seed: int) -> None:
    for value in gradients(pv.TraceSTL_ELBO, model, guide, seed).values():
        assert value.abs().max() < 1e-5
    assert any(value.abs().max() > 0.05 for value in gradients(Trace_ELBO, model, guide, seed).values())


def scaled_and_masked(fn: Callable[..., Any]) -> Callable[..., Any]:
    def inside(x: Tensor) -> None:
        with poutine.scale(scale=0.3), poutine.mask(mask=torch.tensor([True, False, True])):
            fn(x)

    return inside


def test_nor_where_both_are_scaled_and_masked() -> None:
    for value in gradients(pv.TraceSTL_ELBO, scaled_and_masked(model), scaled_and_masked(guide)).values():
        assert value.abs().max() < 1e-5


def coin() -> Any:
    return dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.2)).expand(3))


def straight_through() -> Any:
    return dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5), logits=pyro.param("a", torch.tensor(0.2)).expand(3))


def moved_by_a_transform() -> Any:
    """Its support ends at 0.1 + b, and calls itself the real line."""
    b = pyro.param("b", torch.tensor(1.4))
    return dist.TransformedDistribution(dist.Uniform(torch.zeros(3), 1.0), [AffineTransform(0.1, b)])


def flow_without_an_inverse() -> Any:
    a = pyro.param("a", torch.tensor([0.2]))
    planar = ConditionedPlanar((torch.tensor([0.3]), a, torch.tensor([0.5])))
    return dist.TransformedDistribution(dist.Normal(torch.zeros(3, 1), 1.0).to_event(1), [planar])


@pytest.mark.parametrize("make", [coin, straight_through, moved_by_a_transform, flow_without_an_inverse])
def test_where_the_score_is_not_known_to_be_noise_it_stays(make: Callable[[], Any]) -> None:
    """Draw by draw."""

    def latent(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            fn = make()
            normal = dist.Normal(0.0, 1.0).expand(fn.event_shape).to_event(fn.event_dim)
            prior = dist.Bernoulli(0.3) if make in (coin, straight_through) else normal
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z.reshape(3), 1.0), obs=x)

    def drawn(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", make())

    ours, pyros = gradients(pv.TraceSTL_ELBO, latent, drawn), gradients(Trace_ELBO, latent, drawn)
    assert ours.keys() == pyros.keys() != set()
    for name in ours:
        assert ours[name].isfinite().all()
        assert torch.equal(ours[name], pyros[name])


def test_a_scale_with_a_gradient_keeps_it() -> None:
    found = []
    for objective in (pv.TraceSTL_ELBO(), Trace_ELBO()):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        beta = torch.tensor(0.5, requires_grad=True)
        with poutine.scale(scale=beta):
            objective.differentiable_loss(model, lambda x: guide(x, scale=1.5), X).backward()
        found.append(beta.grad)
    assert found[0] == pytest.approx(found[1].item(), rel=1e-6)


def test_a_vae_at_its_optimum_has_no_gradient() -> None:
    vae = pv.VAE(
        pv.StandardNormalPrior(1),
        pv.GaussianLikelihood(torch.nn.Linear(1, 1), scale=1.0),
        pv.DiagonalNormalPosterior(torch.nn.Linear(1, 2)),
    )
    with torch.no_grad():
        vae.likelihood.network.weight.fill_(1.0)
        vae.likelihood.network.bias.fill_(0.0)
        vae.posterior.network.weight.copy_(torch.tensor([[0.5], [0.0]]))
        vae.posterior.network.bias.copy_(
            torch.stack([torch.zeros(()), 2 * torch.tensor(0.5**0.5 - vae.posterior.min_scale).log()])
        )
    for objective, near in ((pv.TraceSTL_ELBO, True), (Trace_ELBO, False)):
        vae.zero_grad()
        objective().differentiable_loss(vae.model, vae.guide, X[:, None]).backward()
        largest = max(parameter.grad.abs().max() for parameter in vae.posterior.parameters())
        assert (largest < 1e-4) == near


def test_the_value_is_that_of_trace_elbo_draw_by_draw() -> None:
    for method in ("loss", "differentiable_loss", "loss_and_grads"):
        values = []
        for objective in (pv.TraceSTL_ELBO(), Trace_ELBO()):
            pyro.clear_param_store()
            pyro.set_rng_seed(1)
            value = getattr(objective, method)(model, lambda x: guide(x, scale=2.0), X)
            values.append(float(torch.as_tensor(value).detach()))
        assert values[0] == values[1]


def two_levels(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Normal(u, 0.5))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def two_levels_guide(x: Tensor) -> None:
    """The second level's moments depend on the first one's draw."""
    a, b = pyro.param("a", torch.tensor(0.2)), pyro.param("b", torch.tensor(0.8))
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(a * x, b))
        pyro.sample("z", dist.Normal(u * a + x / 3, 0.3 + (b * u) ** 2))


def positive(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(2.0, 2.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def flow(x: Tensor) -> None:
    """A distribution whose parameters are its transforms'."""
    a, b = pyro.param("a", torch.tensor(0.2)), pyro.param("b", torch.tensor(0.4))
    with pyro.plate("data", len(x)):
        transforms = [AffineTransform(a * x, b), ExpTransform()]
        pyro.sample("z", dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0), transforms))


def uniform(x: Tensor) -> None:
    """The support ends where the parameter says: its score is not zero on average."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Uniform(0.1, pyro.param("b", torch.tensor(1.5)).expand(3)))


def own_density(x: Tensor) -> None:
    """As Pyro's AutoContinuous: the draw of one distribution, transformed, in a Delta with the right density."""
    a, b = pyro.param("a", torch.tensor(0.2)), pyro.param("b", torch.tensor(0.4))
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(a * x, b), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(u.exp(), log_density=-u))


def discrete_too(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(z + k, 1.0), obs=x)


def discrete_too_guide(x: Tensor) -> None:
    a, b = pyro.param("a", torch.tensor(0.2)), pyro.param("b", torch.tensor(0.8))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(a * x, b))
        pyro.sample("k", dist.Bernoulli(logits=a + z))


@pytest.mark.parametrize(
    ("of_model", "of_guide"),
    [
        pytest.param(model, lambda x: guide(x, scale=1.5), id="one level"),
        pytest.param(scaled_and_masked(model), scaled_and_masked(lambda x: guide(x, scale=1.5)), id="scaled, masked"),
        pytest.param(two_levels, two_levels_guide, id="two levels"),
        pytest.param(positive, flow, id="a flow"),
        pytest.param(positive, uniform, id="a support that moves"),
        pytest.param(positive, own_density, id="a density of its own"),
        pytest.param(discrete_too, discrete_too_guide, id="a score function"),
    ],
)
def test_the_mean_of_the_gradient_is_that_of_trace_elbo(of_model: Any, of_guide: Any) -> None:
    ours, pyros = many(pv.TraceSTL_ELBO, of_model, of_guide), many(Trace_ELBO, of_model, of_guide)
    assert ours.keys() == pyros.keys()
    for name in ours:
        (mean, error), (expected, other) = ours[name], pyros[name]
        assert abs(mean - expected) < 4 * (error**2 + other**2).sqrt()
        assert max(error, other) < 0.1 * max(expected.abs(), 1.0)  # tight enough to tell


def test_the_gradient_is_that_of_the_closed_form() -> None:
    """KL(q || posterior) for q = N(x / 2, 1.5), posterior N(x / 2, 1 / 2): d/ds = 2 s - 1 / s per datum."""
    mean, error = many(pv.TraceSTL_ELBO, model, lambda x: guide(x, scale=1.5))["scale"]
    assert error < 0.02
    assert abs(mean - 3 * (2 * 1.5 - 1 / 1.5)) < 4 * error


def test_less_noise_near_the_optimum_in_pyros_svi() -> None:
    """SGD at a rate that keeps Trace_ELBO's scale moving comes to rest."""
    wandering = {}
    for objective in (pv.TraceSTL_ELBO(), Trace_ELBO()):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = SVI(model, lambda x: guide(x, scale=1.0), pyro.optim.SGD({"lr": 0.02}), objective)
        values = []
        for _ in range(300):
            svi.step(X)
            values.append(pyro.param("scale").item())
        wandering[type(objective)] = max(abs(value - 0.5**0.5) for value in values[200:])
    assert wandering[pv.TraceSTL_ELBO] < 1e-3 < 0.02 < wandering[Trace_ELBO]
