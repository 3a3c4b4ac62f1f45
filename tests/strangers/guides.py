"""Pyro's automatic guides, and guides that are written in unusual ways."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoDiscreteParallel,
    AutoGaussian,
    AutoGuideList,
    AutoHierarchicalNormalMessenger,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
    AutoNormalMessenger,
    AutoStructured,
    init_to_feasible,
    init_to_sample,
)
from torch import Tensor, nn
from torch.distributions import constraints

from .runner import CAPTURED, STEPS, Setup, call, fresh, program, reals


def regression(x: Tensor) -> None:
    """A slope of two and a positive noise, three columns of data."""
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x[:, :2] @ slope, noise), obs=x[:, 2])


def schools(x: Tensor) -> None:
    """A mean and a spread of groups, and an effect for each group."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("groups", 4):
        effect = pyro.sample("effect", dist.Normal(mean, spread))
        pyro.sample("x", dist.Normal(effect, 1.0), obs=x)


def fitted_by(guide: Any, loss: Any = None) -> Setup:
    return Setup(regression, guide, fresh(6, 3), loss)


@program(CAPTURED, compiled=True)
def auto_normal() -> Setup:
    """`AutoNormal`"""
    return fitted_by(AutoNormal(regression))


@program(CAPTURED)
def auto_normal_mean_field() -> Setup:
    """`AutoNormal` under `TraceMeanField_ELBO`, initialized at a sample"""
    return fitted_by(AutoNormal(regression, init_loc_fn=init_to_sample), TraceMeanField_ELBO())


@program(CAPTURED)
def auto_diagonal_normal() -> Setup:
    """`AutoDiagonalNormal`"""
    return fitted_by(AutoDiagonalNormal(regression, init_loc_fn=init_to_feasible))


@program(CAPTURED, compiled=True)
def auto_multivariate_normal() -> Setup:
    """`AutoMultivariateNormal`"""
    return fitted_by(AutoMultivariateNormal(regression))


@program(CAPTURED)
def auto_low_rank() -> Setup:
    """`AutoLowRankMultivariateNormal`"""
    return fitted_by(AutoLowRankMultivariateNormal(regression, rank=2))


@program(CAPTURED)
def auto_iaf() -> Setup:
    """`AutoIAFNormal`"""
    return fitted_by(AutoIAFNormal(regression, hidden_dim=[5], num_transforms=2))


@program(CAPTURED)
def auto_normalizing_flow() -> Setup:
    """`AutoNormalizingFlow` of planar transforms"""
    return fitted_by(AutoNormalizingFlow(regression, transforms.planar))


@program(CAPTURED)
def auto_delta() -> Setup:
    """`AutoDelta`"""
    return fitted_by(AutoDelta(regression))


@program(CAPTURED)
def auto_laplace() -> Setup:
    """`AutoLaplaceApproximation`"""
    return fitted_by(AutoLaplaceApproximation(regression))


@program(CAPTURED)
def auto_gaussian_dense() -> Setup:
    """`AutoGaussian`, dense"""
    return Setup(schools, AutoGaussian(schools, backend="dense"), fresh(4))


@program(CAPTURED)
def auto_structured() -> Setup:
    """`AutoStructured`"""
    guide = AutoStructured(schools, conditionals={"mean": "mvn", "spread": "delta", "effect": "normal"})
    return Setup(schools, guide, fresh(4))


@program(CAPTURED)
def auto_normal_messenger() -> Setup:
    """`AutoNormalMessenger`"""
    return Setup(schools, AutoNormalMessenger(schools), fresh(4))


@program(CAPTURED)
def auto_hierarchical_messenger() -> Setup:
    """`AutoHierarchicalNormalMessenger`"""
    return Setup(schools, AutoHierarchicalNormalMessenger(schools), fresh(4))


@program(CAPTURED)
def auto_guide_list() -> Setup:
    """`AutoGuideList` of a continuous and a discrete guide"""

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc[..., k], 1.0), obs=x)

    guide = AutoGuideList(model)
    guide.append(AutoDiagonalNormal(poutine.block(model, expose=["loc"])))
    guide.append(AutoDiscreteParallel(poutine.block(model, expose=["k"])))
    return Setup(model, guide, fresh(5), TraceEnum_ELBO(max_plate_nesting=1))


@program(CAPTURED)
def auto_normal_of_a_subsample() -> Setup:
    """`AutoNormal` with local latent variables of a subsample"""

    def plates(x: Tensor) -> pyro.plate:
        return pyro.plate("data", 8, subsample_size=3)

    def model(x: Tensor) -> None:
        with plates(x) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    return Setup(model, AutoNormal(model, create_plates=plates), fresh(8))


@program(CAPTURED)
def easy_guide() -> Setup:
    """An `EasyGuide` with a group of sites"""

    class Guide(EasyGuide):
        def guide(self, x: Tensor) -> None:
            group = self.group(match="slope|noise")
            loc = pyro.param("loc", torch.zeros(group.event_shape))
            scale = pyro.param("scale", torch.full(group.event_shape, 0.3), constraint=constraints.positive)
            group.sample("joint", dist.Normal(loc, scale).to_event(1))

    return fitted_by(Guide(regression))


@program(CAPTURED)
def amortized_guide_with_a_global_part() -> Setup:
    """A network for what is local and parameters for what is global"""
    encoder = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 2))

    def model(x: Tensor) -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 100, subsample=x):
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        scale = pyro.param("scale", torch.tensor(0.1), constraint=constraints.positive)
        pyro.sample("shift", dist.Normal(pyro.param("loc", torch.tensor(0.0)), scale))
        with pyro.plate("data", 100, subsample=x):
            loc, raw = encoder(x[:, None]).unbind(-1)
            pyro.sample("z", dist.Normal(loc, raw.exp()))

    return Setup(model, guide, fresh(5), modules=(encoder,))


@program(CAPTURED)
def a_flow_in_the_guide() -> Setup:
    """An inverse autoregressive flow over the latent variables of a datum"""
    flow = transforms.affine_autoregressive(2, hidden_dims=[5])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(0.5 * x, torch.ones(2)).to_event(1), [flow]))

    return Setup(model, guide, fresh(5, 2), modules=(flow,))


@program(CAPTURED)
def auxiliary_variables() -> Setup:
    """A site that only the guide has"""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            noise = pyro.sample("noise", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample(
                "z", dist.Delta(pyro.param("slope", torch.tensor(0.2)) * noise + x, log_density=-(noise**2) / 2)
            )

    return Setup(model, guide, [call(reals(5, seed=i)) for i in range(STEPS)])
