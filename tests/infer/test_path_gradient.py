"""Path gradients of guides with several latent variables, and which scores are noise."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform, ExpTransform, SigmoidTransform

import pyro_vae as pv
from pyro_vae.infer.path_gradient import path_log_probs
from pyro_vae.infer.score import score_is_noise
from tests.helpers.stories import X, chain_guide, chain_model, gradients

A = torch.tensor(0.7, requires_grad=True)


def affine(*others: Any) -> Any:
    return dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0), [AffineTransform(A, 2.0), *others])


NOISE: dict[str, tuple[Any, bool]] = {
    "normal": (lambda: dist.Normal(A, 1.0), True),
    "independent": (lambda: dist.Normal(A.expand(3), 1.0).to_event(1), True),
    "gamma": (lambda: dist.Gamma(A, 1.0), True),
    "log-normal": (lambda: dist.LogNormal(A, 1.0), True),
    "fixed uniform": (lambda: dist.Uniform(0.0, 1.0), True),
    "flow": (lambda: affine(), True),
    "positive flow": (lambda: affine(ExpTransform()), True),
    "flow to an interval": (lambda: affine(SigmoidTransform()), True),
    "autoregressive flow": (
        lambda: dist.TransformedDistribution(
            dist.Normal(torch.zeros(3), 1.0).to_event(1), [dist.transforms.affine_autoregressive(3)]
        ),
        True,
    ),
    "moving uniform": (lambda: dist.Uniform(0.0, A), False),
    "shifted log-normal": (lambda: affine(ExpTransform(), AffineTransform(A, 1.0)), False),
    "shifted uniform": (lambda: dist.TransformedDistribution(dist.Uniform(0.0, 1.0), [AffineTransform(A, 1.0)]), False),
    "planar flow": (
        lambda: dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0).to_event(1), [dist.transforms.planar(3)]),
        False,
    ),
    "bernoulli": (lambda: dist.Bernoulli(A), False),
    "delta": (lambda: dist.Delta(A), False),
}


@pytest.mark.parametrize("name", NOISE)
def test_whose_score_is_noise(name: str) -> None:
    make, expected = NOISE[name]
    pyro.set_rng_seed(0)
    fn = make()
    assert score_is_noise(fn, fn()) == expected


def test_a_flow_of_zuko() -> None:
    from pyro.contrib.zuko import ZukoToPyro

    fn = ZukoToPyro(pv.autoregressive_flow(3, context_dim=2)(torch.zeros(4, 2)))
    assert score_is_noise(fn, fn())


def test_the_gradient_of_a_hierarchy_goes_along_the_path() -> None:
    """d/da of log q(z) + log q(u|z) at z = a x + b eps, u = c z + d eta, with the densities' parameters fixed."""
    pyro.set_rng_seed(0)
    guide = chain_guide(0.3, 0.9, 0.8, 1.2)
    trace = poutine.trace(guide).get_trace(X)
    found = path_log_probs(guide, trace, (X,), {})
    store = dict(pyro.get_param_store().named_parameters())
    ours = torch.autograd.grad(sum(value.sum() for value in found.values()), [store[name] for name in "abcd"])
    z, u = trace.nodes["z"]["value"].detach(), trace.nodes["u"]["value"].detach()
    eps, eta = (z - 0.3 * X) / 0.9, (u - 0.8 * z) / 1.2
    # d log q / dz and du, then dz / da and so on
    by_u = -eta / 1.2
    by_z = -eps / 0.9 + 0.8 * eta / 1.2
    along_z = by_z + 0.8 * by_u
    expected = [(along_z * X).sum(), (along_z * eps).sum(), (by_u * z).sum(), (by_u * eta).sum()]
    for value, other in zip(ours, expected, strict=True):
        assert value == pytest.approx(other.item(), rel=1e-4, abs=1e-5)
    assert all(value.requires_grad for value in store.values())


def test_no_gradient_at_the_posterior_of_a_hierarchy() -> None:
    for seed in range(3):
        for value in gradients(pv.TraceSTL_ELBO(), chain_model, chain_guide(), seed=seed).values():
            assert value.abs() < 2e-5
        assert max(g.abs() for g in gradients(Trace_ELBO(), chain_model, chain_guide(), seed=seed).values()) > 0.05


def test_parameters_record_gradients_again_after_an_error() -> None:
    guide = chain_guide()
    trace = poutine.trace(guide).get_trace(X)

    def broken(x: Tensor) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        path_log_probs(broken, trace, (X,), {})
    assert all(p.requires_grad for _, p in pyro.get_param_store().named_parameters())


def test_a_flow_before_another_variable_sticks_the_landing() -> None:
    """Pyro's flows keep what they know of their draws, with its gradient: it must not be taken for the path's."""
    pyro.set_rng_seed(0)
    flow = dist.transforms.affine_autoregressive(2, hidden_dims=[8])

    def model(x: Tensor) -> None:  # p is what q is
        with pyro.plate("data", len(x)):
            guide(x)

    def guide(x: Tensor) -> None:
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
            z = pyro.sample("z", dist.TransformedDistribution(base, [flow]))
            pyro.sample("u", dist.Normal(z.sum(-1), 1.0))

    for value in gradients_of_guide(model, guide):
        assert value.abs().max() < 1e-4


def gradients_of_guide(model: Any, guide: Any) -> list[Tensor]:
    """Of log q - log p along the path, p being q at its present parameters."""
    trace = poutine.trace(guide).get_trace(X)
    found = path_log_probs(guide, trace, (X,), {})
    copied = {name: site["fn"] for name, site in trace.nodes.items() if site["type"] == "sample"}
    fixed = poutine.trace(poutine.replay(guide, trace=trace)).get_trace(X)
    fixed.compute_log_prob()
    total = sum(value.sum() for value in found.values())
    # The whole gradient of log q at draws with a path is that along the path plus the score at fixed draws.
    for name in copied:
        trace.nodes[name] = {**trace.nodes[name], "value": trace.nodes[name]["value"].detach()}
    score = poutine.trace(poutine.replay(guide, trace=trace)).get_trace(X).log_prob_sum()
    parameters = [p for _, p in pyro.get_param_store().named_parameters()]
    whole = torch.autograd.grad(fixed.log_prob_sum(), parameters, retain_graph=True)
    scores = torch.autograd.grad(score, parameters)
    path = torch.autograd.grad(total, parameters)
    return [w - s - p for w, s, p in zip(whole, scores, path, strict=True)]


@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal])
def test_an_autoguide_trains(kind: Any) -> None:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, scale), obs=x)

    pyro.set_rng_seed(0)
    guide = kind(model)
    svi = pyro.infer.SVI(model, guide, pv.Adam({"lr": 0.02}), pv.TraceSTL_ELBO())
    x = 2.0 + 0.5 * torch.randn(200)
    losses = [svi.step(x) for _ in range(300)]
    assert sum(losses[-20:]) / 20 < 170 < losses[0]


def test_dropout_in_a_hierarchy_is_refused() -> None:
    dropout = nn.Dropout(0.5)

    def guide(x: Tensor) -> None:
        a = pyro.param("a", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(dropout(a * x), 1.0))
            pyro.sample("u", dist.Normal(z, 1.0))

    pyro.set_rng_seed(1)
    with pytest.raises(ValueError, match=r"expected the same density of 'z' in a second run.*dropout"):
        pv.TraceSTL_ELBO().loss_and_grads(chain_model, guide, X)


def test_a_subsample_of_the_guide_is_that_of_both_runs() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=2) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            u = pyro.sample("u", dist.Normal(z, 1.0))
            pyro.sample("x", dist.Normal(u, 1.0), obs=x[index])

    def guide(x: Tensor) -> None:
        a = pyro.param("a", torch.linspace(0.1, 1.0, len(x)))
        with pyro.plate("data", len(x), subsample_size=2) as index:
            z = pyro.sample("z", dist.Normal(a[index], 1.0))
            pyro.sample("u", dist.Normal(z * a[index], 1.0))

    for seed in range(5):
        pyro.set_rng_seed(seed)
        pv.TraceSTL_ELBO().loss_and_grads(model, guide, torch.randn(30))
