"""The smallest story, for programs whose point lies elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from torch import Tensor
from torch.distributions import constraints

from .runner import Setup, fresh


def guide(*args: Any, **kwargs: Any) -> None:
    """q(z) = N(loc, scale) for one latent variable."""
    scale = pyro.param("scale", torch.tensor(0.3), constraint=constraints.positive)
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), scale))


def observe(x: Tensor, weight: Any) -> None:
    """z ~ N(0, 1), x_n ~ N(weight z, 1)."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(weight * z, 1.0), obs=x)


def changing(model: Callable[..., Any], change: Callable[[], None], guide: Callable[..., Any] = guide) -> Setup:
    """A program in which ``change()`` is called before the 8th step."""

    def before_step(svi: SVI, i: int) -> None:
        if i == 7:
            change()

    return Setup(model, guide, fresh(5), before_step=before_step)
