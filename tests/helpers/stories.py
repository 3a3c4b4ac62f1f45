"""Small stories with known answers, and the gradients of objectives on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor

from pyro_vae.infer import Adam, CompiledSVI

X = torch.tensor([0.3, -1.2, 2.0])
LOG_EVIDENCE = dist.Normal(0.0, 2**0.5).log_prob(X)


def normal_model(x: Tensor, size: int | None = None, beta: Any = 1.0) -> None:
    """z ~ N(0, 1), x ~ N(slope z, 1)."""
    weight = pyro.param("weight", torch.tensor(1.0))
    with pyro.plate("data", size or len(x), subsample=x, dim=-1):
        with poutine.scale(scale=beta):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(weight * z, 1.0), obs=x)


def normal_guide(slope: float = 0.5, scale: float = 0.5**0.5) -> Callable[..., None]:
    """q(z|x) = N(slope x, scale^2); the exact posterior by default."""

    def guide(x: Tensor, size: int | None = None, beta: Any = 1.0) -> None:
        a, s = pyro.param("a", torch.tensor(slope)), pyro.param("s", torch.tensor(scale))
        with pyro.plate("data", size or len(x), subsample=x, dim=-1), poutine.scale(scale=beta):
            pyro.sample("z", dist.Normal(a * x, s))

    return guide


def chain_model(x: Tensor) -> None:
    """u ~ N(0, 1), z ~ N(u, 1), x ~ N(z, 1): log p(x) is that of N(0, 3)."""
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Normal(u, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def chain_guide(a: float = 2 / 3, b: float = (2 / 3) ** 0.5, c: float = 0.5, d: float = 0.5**0.5) -> Any:
    """q(z|x) = N(a x, b^2), q(u|z) = N(c z, d^2); the exact posterior by default."""

    def guide(x: Tensor) -> None:
        values = [pyro.param(name, torch.tensor(value)) for name, value in zip("abcd", (a, b, c, d), strict=True)]
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(values[0] * x, values[1]))
            pyro.sample("u", dist.Normal(values[2] * z, values[3]))

    return guide


def gradients(objective: Any, model: Any, guide: Any, x: Tensor = X, seed: int = 0, **kwargs: Any) -> dict[str, Tensor]:
    """Of the loss, by parameter."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    objective.loss_and_grads(model, guide, x, **kwargs)
    return {name: value.grad for name, value in pyro.get_param_store().named_parameters() if value.grad is not None}


def mean_gradients(
    objective: Any, model: Any, guide: Any, x: Tensor, copies: int = 4000, batches: int = 30, **kwargs: Any
) -> dict[str, Tensor]:
    """The means over ``copies * batches`` draws of the gradient of ``x``, and their standard errors, stacked."""
    found = [gradients(objective, model, guide, x.repeat(copies), seed, **kwargs) for seed in range(batches)]
    stacked = {name: torch.stack([one[name] for one in found]) / copies for name in found[0]}
    return {name: torch.stack([g.mean(0), g.std(0) / batches**0.5]) for name, g in stacked.items()}


def hermite(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights: sum of weights f(nodes) is E f(eps) for eps ~ N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.tensor(nodes), torch.tensor(weights) / math.sqrt(2 * math.pi)


def trains_alike(
    make: Callable[[], tuple[Any, Any]],
    loss: Callable[[], Any],
    x: Tensor | tuple[Any, ...] = X,
    steps: int = 8,
    keywords: Callable[[int], dict[str, Any]] = lambda step: {},
) -> int:
    """Train by Pyro's SVI and by CompiledSVI, compare to the last bit, and return how often a graph was captured.

    ``keywords`` gives the keyword arguments of a step, ``beta`` for instance, from its number.
    """
    args = x if isinstance(x, tuple) else (x,)
    ends = []
    captures = 0
    for compiled in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        torch.manual_seed(3)
        model, guide = make()
        optim = Adam({"lr": 0.02})
        if compiled:
            options: Any = {"compile": "graph", "check_steps": 1, "on_refusal": "raise"}
            svi: Any = CompiledSVI(model, guide, optim, loss(), **options)
        else:
            svi = SVI(model, guide, optim, loss())
        losses = [svi.step(*args, **keywords(step)) for step in range(steps)]
        ends.append((losses, {name: p.detach().clone() for name, p in pyro.get_param_store().named_parameters()}))
        captures = svi.captures if compiled else 0
    (losses, values), (other_losses, others) = ends
    assert losses == other_losses
    for name, value in values.items():
        assert torch.equal(value, others[name]), name
    return captures
