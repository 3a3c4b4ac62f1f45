"""Log-weights and the importance-weighted bound against closed forms."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_vae.infer import Adam, TraceIWAE_ELBO, trace_log_weights


def model(x: Tensor, size: int | None = None, beta: Any = 1.0) -> None:
    with pyro.plate("data", size or len(x), subsample=x, dim=-1):
        with poutine.scale(scale=beta):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor, size: int | None = None, beta: Any = 1.0, scale: float = 0.5**0.5) -> None:
    scale = pyro.param("scale", torch.tensor(scale))
    with pyro.plate("data", size or len(x), subsample=x, dim=-1), poutine.scale(scale=beta):
        pyro.sample("z", dist.Normal(x / 2, scale))


X = torch.tensor([0.0, 1.0, -2.0])
LOG_EVIDENCE = dist.Normal(0.0, 2**0.5).log_prob(X)


@pytest.mark.parametrize("kwargs", [{}, {"size": 30}, {"beta": 0.3}, {"beta": torch.tensor(0.3), "size": 9}])
def test_an_exact_guide_has_log_weights_equal_to_the_evidence(kwargs: dict[str, Any]) -> None:
    log_w = trace_log_weights(model, guide, (X,), kwargs, num_particles=4)
    assert log_w.shape == (4, 3)
    assert torch.allclose(log_w, LOG_EVIDENCE.expand(4, 3), atol=1e-5)


def test_the_bound_scales_outside_the_logarithm_and_its_gradient_is_right() -> None:
    def rough(x: Tensor, size: int | None = None) -> None:
        guide(x, size, scale=1.2)

    losses = {}
    for size in (None, 30):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        objective = TraceIWAE_ELBO(5)
        losses[size] = objective.loss_and_grads(model, rough, X, size=size)
        losses[size, "grad"] = pyro.get_param_store()._params["scale"].grad.item()
    assert losses[30] == pytest.approx(10 * losses[None], rel=1e-5)
    assert losses[30, "grad"] == pytest.approx(10 * losses[None, "grad"], rel=1e-5)

    def bound(scale: float) -> float:
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        return TraceIWAE_ELBO(5).loss(model, lambda x: guide(x, scale=scale), X)

    assert losses[None, "grad"] == pytest.approx((bound(1.21) - bound(1.19)) / 0.02, rel=1e-2)


def test_one_particle_is_the_elbo_and_more_are_tighter() -> None:
    def rough(x: Tensor) -> None:
        guide(x, scale=1.5)

    many = X.repeat(2000)
    pyro.set_rng_seed(2)
    one = TraceIWAE_ELBO(1).loss(model, rough, many)
    pyro.set_rng_seed(2)
    assert one == pytest.approx(Trace_ELBO().loss(model, rough, many), rel=1e-5)
    ten, hundred = (TraceIWAE_ELBO(k).loss(model, rough, many) for k in (10, 100))
    exact = -2000 * LOG_EVIDENCE.sum().item()
    assert one > ten > hundred > exact - 1e-3 * abs(exact)
    assert hundred == pytest.approx(exact, rel=1e-2)


def test_beta_tempers_the_latent_terms_in_training() -> None:
    pyro.set_rng_seed(3)
    z = X / 2 + 0.5**0.5 * torch.randn(1, 3)
    pyro.set_rng_seed(3)
    loss = TraceIWAE_ELBO(1).loss(model, guide, X, beta=torch.tensor(0.25))
    latent = dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(X / 2, 0.5**0.5).log_prob(z)
    assert loss == pytest.approx(-(dist.Normal(z, 1.0).log_prob(X) + 0.25 * latent).sum().item(), rel=1e-5)


def test_it_trains_in_pyros_svi() -> None:
    svi = SVI(model, lambda x: guide(x, scale=2.0), Adam({"lr": 0.05}), TraceIWAE_ELBO(2))
    for _ in range(200):
        svi.step(X.repeat(20))
    assert pyro.param("scale").item() == pytest.approx(0.5**0.5, rel=0.05)


def test_a_mask_counts() -> None:
    def masked(x: Tensor) -> None:
        with poutine.mask(mask=torch.tensor([True, False, True])):
            model(x)

    def masked_guide(x: Tensor) -> None:
        with poutine.mask(mask=torch.tensor([True, False, True])):
            guide(x)

    log_w = trace_log_weights(masked, masked_guide, (X,))
    assert torch.allclose(log_w, torch.where(torch.tensor([True, False, True]), LOG_EVIDENCE, 0.0), atol=1e-5)


def test_refused_with_a_reason() -> None:
    def global_model(x: Tensor) -> None:
        pyro.sample("mean", dist.Normal(0.0, 1.0))
        model(x)

    def global_guide(x: Tensor) -> None:
        pyro.sample("mean", dist.Normal(0.0, 1.0))
        guide(x)

    def discrete(x: Tensor, obs: Tensor | None = None) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match="'mean' is global"):
        trace_log_weights(global_model, global_guide, (X,))
    with pytest.raises(ValueError, match="not in the guide"):
        trace_log_weights(model, lambda x: None, (X,))
    with pytest.raises(ValueError, match="not in the model"):
        trace_log_weights(lambda x: None, guide, (X,))
    with pytest.raises(ValueError, match="no reparameterised sampler"):
        TraceIWAE_ELBO(3).loss(discrete, discrete, X)
    with pytest.raises(ValueError, match="num_particles"):
        TraceIWAE_ELBO(0)
    assert trace_log_weights(discrete, discrete, (X,), num_particles=2).shape == (2, 3)


def test_all_global_sites_give_one_weight_per_particle() -> None:
    def whole() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    log_w = trace_log_weights(whole, lambda: pyro.sample("z", dist.Normal(0.5, 0.5**0.5)), num_particles=6)
    assert log_w.shape == (6, 1)
    assert torch.allclose(log_w, torch.tensor(-0.25 - 0.5 * math.log(4 * math.pi)), atol=1e-5)
