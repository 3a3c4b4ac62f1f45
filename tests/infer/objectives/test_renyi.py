"""Renyi's bound: its two limits, its value by quadrature, and mini-batches."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_vae.infer import TraceIWAE_ELBO, TraceRenyi_ELBO
from tests.helpers.stories import (
    LOG_EVIDENCE,
    X,
    gradients,
    hermite,
    mean_gradients,
    normal_guide,
    normal_model,
    trains_alike,
)

ROUGH = {"slope": 0.2, "scale": 0.9}
ONE = torch.tensor([1.5])


def quadrature(alpha: float) -> tuple[float, dict[str, float]]:
    """The bound of ``ONE`` with two particles, and the gradients of the loss."""
    eps, weights = hermite(60)
    a, s = (torch.tensor(ROUGH[name], dtype=torch.float64, requires_grad=True) for name in ("slope", "scale"))
    z = a * ONE.double() + s * eps
    standard = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    log_w = standard.log_prob(z) + dist.Normal(z, 1.0).log_prob(ONE.double())
    log_w = log_w - dist.Normal(a * ONE.double(), s).log_prob(z)
    pairs = torch.stack(torch.broadcast_tensors(log_w[:, None], log_w[None, :]))
    bound = (((1 - alpha) * pairs).logsumexp(0) - math.log(2)) / (1 - alpha)
    total = (weights[:, None] * weights * bound).sum()
    found = torch.autograd.grad(total, (a, s))
    return total.item(), {"a": -found[0].item(), "s": -found[1].item()}


@pytest.mark.parametrize("alpha", [-0.5, 0.5, 2.0])
def test_value_and_gradient_are_those_of_quadrature(alpha: float) -> None:
    value, expected = quadrature(alpha)
    copies, losses = 20_000, []
    for seed in range(10):
        pyro.set_rng_seed(seed)
        losses.append(TraceRenyi_ELBO(alpha, 2).loss(normal_model, normal_guide(**ROUGH), ONE.repeat(copies)) / copies)
    error = torch.tensor(losses).std().item() / 10**0.5
    assert error < 0.01
    assert -sum(losses) / 10 == pytest.approx(value, abs=4 * error)
    for name, (mean, error) in mean_gradients(
        TraceRenyi_ELBO(alpha, 2), normal_model, normal_guide(**ROUGH), ONE
    ).items():
        if name in expected:
            assert error < 0.03
            assert abs(mean - expected[name]) < 4 * error


def test_alpha_zero_is_the_importance_weighted_bound_and_one_the_elbo() -> None:
    for method in ("loss", "gradients"):
        values: list[Any] = []
        for objective in (TraceRenyi_ELBO(0.0, 4), TraceIWAE_ELBO(4)):
            if method == "loss":
                pyro.set_rng_seed(0)
                values.append(objective.loss(normal_model, normal_guide(**ROUGH), X))
            else:
                values.append(gradients(objective, normal_model, normal_guide(**ROUGH))["s"].item())
        assert values[0] == pytest.approx(values[1], rel=1e-5)
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    values = []
    for objective in (TraceRenyi_ELBO(1.0, 4), TraceRenyi_ELBO(1.0 + 1e-3, 4), TraceRenyi_ELBO(1.0 - 1e-3, 4), elbo):
        pyro.set_rng_seed(0)
        values.append(objective.loss(normal_model, normal_guide(**ROUGH), X))
    assert values[0] == pytest.approx(values[3], rel=1e-5)
    assert values[1] == pytest.approx(values[0], rel=1e-3)
    assert values[2] == pytest.approx(values[0], rel=1e-3)


def test_it_falls_with_alpha_and_is_tight_at_the_posterior() -> None:
    values = []
    for alpha in (-0.5, 0.0, 0.5, 1.0, 2.0):
        pyro.set_rng_seed(0)
        values.append(-TraceRenyi_ELBO(alpha, 5).loss(normal_model, normal_guide(**ROUGH), X))
    assert values == sorted(values, reverse=True)
    pyro.clear_param_store()
    loss = TraceRenyi_ELBO(0.5, 5).loss(normal_model, normal_guide(), X)
    assert loss == pytest.approx(-LOG_EVIDENCE.sum().item(), rel=1e-5)


def test_the_scale_of_a_batch_is_outside_the_logarithm() -> None:
    values = []
    for size in (None, 30):
        pyro.set_rng_seed(0)
        values.append(TraceRenyi_ELBO(0.5, 3).loss(normal_model, normal_guide(**ROUGH), X, size=size))
    assert values[1] == pytest.approx(10 * values[0], rel=1e-5)


def test_a_step_is_captured_and_equal() -> None:
    assert trains_alike(lambda: (normal_model, normal_guide(**ROUGH)), lambda: TraceRenyi_ELBO(0.5, 3)) == 1


def test_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match="alpha: expected a finite number, got inf"):
        TraceRenyi_ELBO(math.inf)
    with pytest.raises(ValueError, match="num_particles"):
        TraceRenyi_ELBO(0.5, 0)
