"""Reweighted wake-sleep against enumeration."""

from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor

import pyro_vae as pv
from pyro_vae.infer import TraceIWAE_ELBO, TraceWakeSleep
from tests.helpers.stories import X, gradients, mean_gradients, normal_guide, normal_model, trains_alike

PROBABILITIES = torch.tensor([[0.2, 0.5, 0.3], [0.7, 0.1, 0.2], [0.4, 0.4, 0.2]])  # p(x|k), a row for each k
ONE = torch.tensor([1.0])


def model(x: Tensor, size: int | None = None) -> None:
    """k in {0, 1, 2}, x in {0, 1, 2}."""
    prior = pyro.param("prior", torch.tensor([0.1, 0.4, -0.2]))
    emission = pyro.param("emission", PROBABILITIES.log())
    with pyro.plate("data", size or len(x), subsample=x):
        k = pyro.sample("k", dist.Categorical(logits=prior))
        pyro.sample("x", dist.Categorical(logits=emission[k.long()]), obs=x)


def guide(x: Tensor, size: int | None = None) -> None:
    table = pyro.param("table", torch.tensor([[0.3, -0.1, 0.2], [0.5, 0.1, -0.4], [0.0, 0.6, -0.5]]))
    with pyro.plate("data", size or len(x), subsample=x):
        pyro.sample("k", dist.Categorical(logits=table[x.long()]))


def enumerated(x: int, particles: int, wake: float) -> dict[str, Tensor]:
    """The expected gradient of the loss of one datum, by enumerating all draws of all particles."""
    pyro.clear_param_store()
    model(ONE)
    guide(ONE)
    names = ("prior", "emission", "table")
    prior, emission, table = (pyro.get_param_store()._params[name].detach().requires_grad_() for name in names)
    log_joint = prior.log_softmax(0)[:, None] + emission.log_softmax(1)  # [k, x]
    log_q = table.log_softmax(1)  # [x, k]
    ascended = torch.zeros(())
    for draws in itertools.product(range(3), repeat=particles):
        k = list(draws)
        probability = log_q[x, k].sum().exp().detach()
        normalized = (log_joint[k, x] - log_q[x, k]).softmax(0).detach()
        ascended = ascended + probability * (normalized * (log_joint[k, x] + wake * log_q[x, k])).sum()
    asleep = (log_joint.exp().detach() * log_q.T).sum()
    found = torch.autograd.grad(-(ascended + (1 - wake) * asleep), (prior, emission, table))
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("particles", [2, 3])
@pytest.mark.parametrize("wake", [1.0, 0.0, 0.3])
def test_the_gradient_is_that_of_enumeration(particles: int, wake: float) -> None:
    expected = enumerated(1, particles, wake)
    found = mean_gradients(TraceWakeSleep(particles, wake), model, guide, ONE, copies=4000, batches=30)
    for name, (mean, error) in found.items():
        assert error.max() < 0.01
        assert ((mean - expected[name]).abs() < 4 * error + 1e-6).all(), name


def test_as_the_particles_grow_the_model_gets_the_gradient_of_the_log_likelihood() -> None:
    """And the guide that of KL(p(k|x) || q)."""
    pyro.clear_param_store()
    found = mean_gradients(TraceWakeSleep(2000), model, guide, ONE, copies=20, batches=10)
    prior, emission, table = (pyro.get_param_store()._params[name].detach() for name in ("prior", "emission", "table"))
    log_joint = prior.log_softmax(0) + emission.log_softmax(1)[:, 1]
    posterior = log_joint.softmax(0)
    assert torch.allclose(found["prior"][0], prior.softmax(0) - posterior, atol=0.01)
    assert torch.allclose(found["table"][0][1], table[1].softmax(0) - posterior, atol=0.01)


def test_the_value_is_the_importance_weighted_bound() -> None:
    for size in (None, 30):
        values = []
        for objective in (TraceWakeSleep(3), TraceIWAE_ELBO(3)):
            pyro.set_rng_seed(0)
            values.append(objective.loss(normal_model, normal_guide(0.2, 1.1), X, size=size))
        assert values[0] == pytest.approx(values[1], rel=1e-5)
        pyro.set_rng_seed(0)
        loss = TraceWakeSleep(3, wake=0.5).loss_and_grads(normal_model, normal_guide(0.2, 1.1), X, size=size)
        assert loss == pytest.approx(values[0], rel=1e-5)


def test_no_gradient_passes_a_draw() -> None:
    """Of a normal: d/ds log q(z) at weights w, z = a x + s eps, is sum w (eps^2 - 1) / s."""
    found = gradients(TraceWakeSleep(4), normal_model, normal_guide(0.2, 1.1), ONE)["s"]
    pyro.set_rng_seed(0)
    log_w = pv.log_weights(normal_model, normal_guide(0.2, 1.1), ONE, num_particles=4)
    pyro.set_rng_seed(0)
    eps = torch.randn(4, 1)
    weights = log_w.softmax(0)
    assert found == pytest.approx(-(weights * (eps**2 - 1)).sum().item() / 1.1, rel=1e-4)


def test_the_scale_of_a_batch_multiplies_all_phases() -> None:
    x = torch.tensor([0.0, 1.0, 2.0])
    for wake in (1.0, 0.5):
        one, ten = (gradients(TraceWakeSleep(3, wake), model, guide, x, size=size) for size in (3, 30))
        for name, value in one.items():
            assert torch.allclose(10 * value, ten[name], atol=1e-4)


def test_it_learns_a_discrete_story_in_pyros_svi() -> None:
    pyro.set_rng_seed(0)
    x = torch.tensor([0.0, 1.0, 2.0]).repeat(20)
    svi = SVI(model, guide, pv.Adam({"lr": 0.02}), TraceWakeSleep(10, wake=0.5))
    for _ in range(300):
        svi.step(x)
    prior, emission, table = (pyro.param(name).detach() for name in ("prior", "emission", "table"))
    posterior = (prior.log_softmax(0)[:, None] + emission.log_softmax(1)).softmax(0).T
    assert torch.allclose(table.softmax(1), posterior, atol=0.05)


@pytest.mark.parametrize("wake", [1.0, 0.5])
@pytest.mark.parametrize("story", ["discrete", "normal"])
def test_a_step_is_captured_and_equal(story: str, wake: float) -> None:
    of = (model, guide) if story == "discrete" else (normal_model, normal_guide(0.2, 1.1))
    x = torch.tensor([0.0, 2.0, 1.0]) if story == "discrete" else X
    assert trains_alike(lambda: of, lambda: TraceWakeSleep(3, wake), x) == 1


def test_a_vae_has_a_sleep_phase() -> None:
    vae = pv.VAE(
        pv.StandardNormalPrior(2),
        pv.BernoulliLikelihood(pv.MLP(2, 6, hidden_dims=())),
        pv.DiagonalNormalPosterior(pv.MLP(6, 4, hidden_dims=())),
    )
    svi = pv.CompiledSVI(vae.model, vae.guide, pv.Adam({"lr": 1e-3}), TraceWakeSleep(3, wake=0.0), compile="graph")
    for _ in range(4):
        svi.step(torch.ones(5, 6), size=50)
    assert svi.captures == 1


def test_refused_with_a_reason() -> None:
    def of_a_half(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x / 2)

    def auxiliary(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(x, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(u, 1.0))

    with pytest.raises(ValueError, match="expected an argument that it observes"):
        gradients(TraceWakeSleep(2, wake=0.0), of_a_half, normal_guide())
    with pytest.raises(ValueError, match="'u' of the guide is not in the model"):
        gradients(TraceWakeSleep(2, wake=0.0), normal_model, auxiliary)
    with pytest.raises(ValueError, match="num_particles: expected an integer >= 2"):
        TraceWakeSleep(1)
    with pytest.raises(ValueError, match="wake: expected a finite number from 0 to 1, got 2"):
        TraceWakeSleep(2, wake=2.0)
