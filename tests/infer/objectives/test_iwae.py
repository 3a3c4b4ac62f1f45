"""The importance-weighted bound and its gradients, against quadrature and exact posteriors."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

import pyro_vae as pv
from pyro_vae.infer import TraceIWAE_ELBO
from tests.helpers.stories import (
    LOG_EVIDENCE,
    X,
    chain_guide,
    chain_model,
    gradients,
    hermite,
    mean_gradients,
    normal_guide,
    normal_model,
    trains_alike,
)

ROUGH = {"slope": 0.2, "scale": 1.1}
PATHS = ("stl", "dreg")
ONE = torch.tensor([1.5])


def quadrature(particles: int, beta: float = 1.0, nodes: int = 40) -> tuple[float, dict[str, float]]:
    """The bound of ``ONE`` under the rough guide, and its gradients, for K = 1, 2, 3."""
    eps, weights = hermite(nodes)
    values = {"a": ROUGH["slope"], "s": ROUGH["scale"], "weight": 1.0}
    a, s, weight = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values.values())
    x = ONE.double()
    z = a * x + s * eps
    latent = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0).log_prob(z) - dist.Normal(a * x, s).log_prob(z)
    log_w = beta * latent + dist.Normal(weight * z, 1.0).log_prob(x)
    grid = torch.cartesian_prod(*[torch.arange(nodes)] * particles).reshape(-1, particles)
    bound = (weights[grid].prod(1) * (log_w[grid].logsumexp(1) - math.log(particles))).sum()
    found = torch.autograd.grad(bound, (a, s, weight))
    return bound.item(), {name: -g.item() for name, g in zip(values, found, strict=True)}


@pytest.mark.parametrize("gradient", PATHS)
@pytest.mark.parametrize(("model", "guide"), [(normal_model, normal_guide()), (chain_model, chain_guide())])
def test_no_gradient_where_the_guide_is_the_posterior(gradient: Any, model: Any, guide: Any) -> None:
    """Draw by draw, for a hierarchy too; the standard gradient is far from it."""
    of_guide = set("asbcd")
    for seed in range(3):
        for particles in (1, 5):
            for name, value in gradients(TraceIWAE_ELBO(particles, gradient), model, guide, seed=seed).items():
                assert name not in of_guide or value.abs() < 2e-5
        standard = gradients(TraceIWAE_ELBO(5), model, guide, seed=seed)
        assert max(standard[name].abs() for name in of_guide & standard.keys()) > 0.05


def test_tight_where_the_guide_is_the_posterior() -> None:
    assert TraceIWAE_ELBO(3).loss(normal_model, normal_guide(), X) == pytest.approx(-LOG_EVIDENCE.sum().item(), 1e-5)
    pyro.clear_param_store()
    exact = dist.Normal(0.0, 3**0.5).log_prob(X).sum().item()
    assert TraceIWAE_ELBO(3).loss(chain_model, chain_guide(), X) == pytest.approx(-exact, 1e-5)


def test_the_bound_rises_with_the_particles_and_has_the_value_of_quadrature() -> None:
    exact = [quadrature(particles)[0] for particles in (1, 2, 3)]
    log_evidence = dist.Normal(0.0, 2**0.5).log_prob(ONE).item()
    assert exact[0] < exact[1] < exact[2] < log_evidence
    copies = 40_000
    for particles, expected in zip((1, 2, 3), exact, strict=True):
        pyro.set_rng_seed(0)
        log_w = pv.log_weights(normal_model, normal_guide(**ROUGH), ONE.repeat(copies), num_particles=particles)
        error = pv.iwae(log_w).std().item() / copies**0.5
        for gradient in ("standard", *PATHS):
            pyro.set_rng_seed(0)
            loss = TraceIWAE_ELBO(particles, gradient).loss(normal_model, normal_guide(**ROUGH), ONE.repeat(copies))
            assert -loss / copies == pytest.approx(expected, abs=4 * error)


@pytest.mark.parametrize("beta", [1.0, 0.4])
@pytest.mark.parametrize("gradient", ["standard", *PATHS])
def test_the_mean_of_the_gradient_is_that_of_quadrature(gradient: Any, beta: float) -> None:
    """Of two particles; the one that sticks the landing is biased, as the docs say, in the guide's parameters."""
    _, expected = quadrature(2, beta)
    found = mean_gradients(TraceIWAE_ELBO(2, gradient), normal_model, normal_guide(**ROUGH), ONE, beta=beta)
    for name, (mean, error) in found.items():
        assert error < 0.02
        biased = gradient == "stl" and name != "weight"
        assert (abs(mean - expected[name]) > 6 * error) == biased, (name, mean, error, expected[name])
        assert biased or abs(mean - expected[name]) < 4 * error


@pytest.mark.parametrize("gradient", PATHS)
def test_with_one_particle_it_is_that_of_the_elbo(gradient: Any) -> None:
    stl = gradients(pv.TraceSTL_ELBO(), normal_model, normal_guide(**ROUGH))
    ours = gradients(TraceIWAE_ELBO(1, gradient), normal_model, normal_guide(**ROUGH))
    for name, value in stl.items():
        assert ours[name] == pytest.approx(value.item(), rel=1e-4)


@pytest.mark.parametrize("gradient", PATHS)
def test_a_hierarchy_with_one_particle_has_the_gradient_of_the_kl(gradient: Any) -> None:
    """d/dd of E_q(z) KL(N(c z, d^2) || N(z / 2, 1 / 2)) = 2 d - 1 / d, of d/db the same by b and 2 c - 1 of z."""
    guide = chain_guide(a=0.3, b=0.9, c=0.8, d=1.2)
    found = mean_gradients(TraceIWAE_ELBO(1, gradient), chain_model, guide, ONE)
    second = 0.3**2 * 1.5**2 + 0.9**2  # E z^2
    of_mean = (0.8 - 0.5) ** 2  # KL = d^2 - log d + (c - 1/2)^2 E z^2 + constants
    expected = {
        "d": 2 * 1.2 - 1 / 1.2,
        "c": 2 * (0.8 - 0.5) * second,
        # KL(q(z) || N(2 x / 3, 2 / 3)) = 3/4 (b^2 + (a - 2/3)^2 x^2) - log b + constants
        "b": (1.5 + 2 * of_mean) * 0.9 - 1 / 0.9,
        "a": 1.5 * (0.3 - 2 / 3) * 1.5**2 + 2 * of_mean * 0.3 * 1.5**2,
    }
    for name, (mean, error) in found.items():
        assert error < 0.03
        assert abs(mean - expected[name]) < 4 * error, (name, mean, error, expected[name])


def positive(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(2.0, 2.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def gamma(x: Tensor) -> None:
    """Implicitly reparameterised."""
    a, b = pyro.param("a", torch.tensor(1.4)), pyro.param("b", torch.tensor(2.4))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Gamma(a + 0 * x, b))


def log_normal_flow(x: Tensor) -> None:
    a, b = pyro.param("a", torch.tensor(0.2)), pyro.param("b", torch.tensor(0.8))
    with pyro.plate("data", len(x)):
        transforms = [dist.transforms.AffineTransform(a * x, b), dist.transforms.ExpTransform()]
        pyro.sample("z", dist.TransformedDistribution(dist.Normal(torch.zeros(len(x)), 1.0), transforms))


@pytest.mark.parametrize(
    ("model", "guide"),
    [
        pytest.param(positive, gamma, id="implicit"),
        pytest.param(positive, log_normal_flow, id="a flow"),
        pytest.param(chain_model, chain_guide(a=0.3, b=0.9, c=0.8, d=1.2), id="a hierarchy"),
    ],
)
def test_doubly_reparameterised_has_the_mean_of_the_standard_gradient_and_less_noise(model: Any, guide: Any) -> None:
    standard = mean_gradients(TraceIWAE_ELBO(8), model, guide, ONE)
    doubly = mean_gradients(TraceIWAE_ELBO(8, "dreg"), model, guide, ONE)
    assert standard.keys() == doubly.keys()
    for name in standard:
        (mean, error), (expected, other) = doubly[name], standard[name]
        assert abs(mean - expected) < 4 * (error**2 + other**2).sqrt(), name
        assert error < other, name


def test_with_q_far_too_narrow_the_path_gradient_is_the_noisier_one() -> None:
    """As docs/objectives.md says."""
    noise = {}
    for objective in (Trace_ELBO(), pv.TraceSTL_ELBO()):
        found = [gradients(objective, normal_model, normal_guide(scale=0.01), seed=seed)["a"] for seed in range(200)]
        noise[type(objective)] = torch.stack(found).std()
    assert noise[pv.TraceSTL_ELBO] > 20 * noise[Trace_ELBO]


@pytest.mark.parametrize("gradient", ["standard", *PATHS])
@pytest.mark.parametrize("story", ["one level", "a hierarchy"])
def test_a_step_is_captured_and_equal(gradient: Any, story: str) -> None:
    def make() -> tuple[Any, Any]:
        if story == "a hierarchy":
            return chain_model, chain_guide(a=0.3, b=0.9, c=0.8, d=1.2)
        return normal_model, normal_guide(**ROUGH)

    assert trains_alike(make, lambda: TraceIWAE_ELBO(3, gradient)) == 1


def test_sticking_the_landing_in_a_hierarchy_is_captured_and_equal() -> None:
    assert trains_alike(lambda: (chain_model, chain_guide(0.3, 0.9, 0.8, 1.2)), pv.TraceSTL_ELBO) == 1


def test_refused_with_a_reason() -> None:
    def moving(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(0.0, pyro.param("b", torch.tensor(2.0)).expand(len(x))))

    def unevenly_scaled(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.5):
                z = pyro.sample("z", dist.Normal(pyro.param("a", torch.tensor(0.1)) * x, 1.0))
            pyro.sample("u", dist.Normal(z, 1.0))

    with pytest.raises(ValueError, match="gradient: expected 'standard', 'stl' or 'dreg', got 'path'"):
        TraceIWAE_ELBO(3, "path")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'z': expected a distribution whose score is known"):
        gradients(TraceIWAE_ELBO(3, "dreg"), positive, moving)
    with pytest.raises(ValueError, match="the same around all latent variables"):
        gradients(TraceIWAE_ELBO(3, "dreg"), chain_model, unevenly_scaled)
