"""Every objective of Pyro and of this package, and objectives of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.gp.kernels import RBF
from pyro.infer import (
    SVI,
    EnergyDistance,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    Trace_MMD,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
    config_enumerate,
)
from torch import Tensor, nn
from torch.distributions import constraints

import pyro_vae as pv

from .runner import CAPTURED, LEFT, STEPS, Call, Setup, bits, call, fresh, program, ragged, reals


def local_normal() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """z_n ~ N(0, 1), x_n ~ N(w z_n, 1), with a linear guide."""

    def model(x: Tensor) -> None:
        weight = pyro.param("weight", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(weight * z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.3))
        scale = pyro.param("scale", torch.tensor(0.8), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, scale))

    return model, guide


def two_components() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """k_n ~ Categorical, x_n ~ N(mu_k, 1); the guide gives each datum its own probabilities."""

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(8, 2))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=logits[: len(x)]))

    return model, guide


@program(CAPTURED, compiled=True)
def trace() -> Setup:
    """`Trace_ELBO`, ragged last batches"""
    return Setup(*local_normal(), ragged(6))


@program(CAPTURED)
def several_particles() -> Setup:
    """`Trace_ELBO` with a loop over particles"""
    return Setup(*local_normal(), fresh(5), Trace_ELBO(num_particles=3))


@program(CAPTURED)
def vectorized_particles() -> Setup:
    """`Trace_ELBO` with vectorized particles"""
    return Setup(*local_normal(), fresh(5), Trace_ELBO(num_particles=3, vectorize_particles=True))


@program(CAPTURED)
def mean_field() -> Setup:
    """`TraceMeanField_ELBO`"""
    return Setup(*local_normal(), ragged(6), TraceMeanField_ELBO())


@program(CAPTURED)
def trace_graph() -> Setup:
    """`TraceGraph_ELBO`"""
    return Setup(*local_normal(), fresh(5), TraceGraph_ELBO())


@program(CAPTURED)
def score_function() -> Setup:
    """A discrete latent variable by the score-function estimator"""
    return Setup(*two_components(), fresh(5))


@program(LEFT, says="parameter store")
def decaying_average_baseline() -> Setup:
    """`TraceGraph_ELBO` with a decaying-average baseline"""
    model, _ = two_components()

    def guide(x: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(8, 2))
        baseline = {"use_decaying_avg_baseline": True, "baseline_beta": 0.9}
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=logits[: len(x)]), infer={"baseline": baseline})

    return Setup(model, guide, fresh(5), TraceGraph_ELBO())


@program(CAPTURED)
def network_baseline() -> Setup:
    """`TraceGraph_ELBO` with a network as baseline"""
    model, _ = two_components()
    network = nn.Linear(1, 1)

    def guide(x: Tensor) -> None:
        pyro.module("baseline", network)
        logits = pyro.param("logits", torch.zeros(8, 2))
        baseline = {"baseline_value": network(x[:, None])[:, 0]}
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=logits[: len(x)]), infer={"baseline": baseline})

    return Setup(model, guide, fresh(5), TraceGraph_ELBO(), modules=(network,))


@program(CAPTURED)
def validation_under_trace_graph() -> Setup:
    """`evaluate_loss` under `TraceGraph_ELBO` between the steps"""

    def run(svi: SVI, batches: list[Call]) -> list[float]:
        losses = []
        for args, kwargs in batches:
            losses += [svi.step(*args, **kwargs), svi.evaluate_loss(reals(7), **kwargs)]
        return losses

    return Setup(*two_components(), fresh(5), TraceGraph_ELBO(), run=run)


@program(CAPTURED, compiled=True)
def enumerated_mixture() -> Setup:
    """`TraceEnum_ELBO` with a component that is summed out"""
    model, _ = two_components()
    return Setup(config_enumerate(model), lambda x: None, ragged(6), TraceEnum_ELBO(max_plate_nesting=1))


@program(CAPTURED)
def enumerated_in_the_guide() -> Setup:
    """`TraceEnum_ELBO` with enumeration in the guide (Dice)"""
    model, guide = two_components()
    return Setup(model, config_enumerate(guide), fresh(5), TraceEnum_ELBO(max_plate_nesting=1))


@program(CAPTURED)
def dice_without_enumeration() -> Setup:
    """`TraceEnum_ELBO` of samples (Dice)"""
    elbo = TraceEnum_ELBO(max_plate_nesting=1, num_particles=2, strict_enumeration_warning=False)
    return Setup(*two_components(), fresh(5), elbo)


@program(CAPTURED)
def enumeration_with_a_tensor_beta() -> Setup:
    """`TraceEnum_ELBO` under `poutine.scale` with a tensor"""

    @config_enumerate
    def model(x: Tensor, beta: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)), poutine.scale(scale=beta):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.4, 0.6])))
            pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x)

    batches = [call(reals(5, seed=i), torch.tensor((i + 1) / STEPS)) for i in range(STEPS)]
    return Setup(model, lambda *args: None, batches, TraceEnum_ELBO(max_plate_nesting=1))


@program(CAPTURED)
def renyi() -> Setup:
    """`RenyiELBO`"""
    return Setup(*local_normal(), fresh(5), RenyiELBO(alpha=0.5, num_particles=3))


@program(CAPTURED)
def renyi_vectorized() -> Setup:
    """`RenyiELBO` with vectorized particles and a discrete latent variable"""
    return Setup(*two_components(), fresh(5), RenyiELBO(alpha=0.0, num_particles=3, vectorize_particles=True))


@program(CAPTURED)
def tail_adaptive() -> Setup:
    """`TraceTailAdaptive_ELBO`"""
    return Setup(*local_normal(), fresh(5), TraceTailAdaptive_ELBO(num_particles=3, vectorize_particles=True))


@program(CAPTURED)
def wake_sleep() -> Setup:
    """`ReweightedWakeSleep`, whose loss is a pair"""

    def model(x: Tensor | None = None) -> None:
        weight = pyro.param("weight", torch.tensor(1.0))
        with pyro.plate("data", 5):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(weight * z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.3))
        with pyro.plate("data", 5):
            pyro.sample("z", dist.Normal(slope * x, 0.8))

    return Setup(model, guide, fresh(5), ReweightedWakeSleep(num_particles=2, vectorize_particles=False))


@program(CAPTURED)
def tensor_monte_carlo() -> Setup:
    """`TraceTMC_ELBO`"""
    model, guide = two_components()
    guide = config_enumerate(guide, default="parallel", num_samples=3, expand=False)
    return Setup(model, guide, fresh(5), TraceTMC_ELBO(max_plate_nesting=1))


@program(CAPTURED)
def maximum_mean_discrepancy() -> Setup:
    """`Trace_MMD`"""
    kernel = RBF(1, lengthscale=torch.tensor(1.0))
    return Setup(*local_normal(), fresh(5), Trace_MMD(kernel, num_particles=4, max_plate_nesting=1))


@program(LEFT, says="nonzero")
def energy_distance() -> Setup:
    """`EnergyDistance`"""
    return Setup(*local_normal(), fresh(5), EnergyDistance(num_particles=3))


@program(CAPTURED)
def importance_weighted() -> Setup:
    """`pv.TraceIWAE_ELBO`"""
    return Setup(*local_normal(), ragged(6), pv.TraceIWAE_ELBO(3))


@program(CAPTURED)
def sticking_the_landing() -> Setup:
    """`pv.TraceSTL_ELBO`"""
    return Setup(*local_normal(), ragged(6), pv.TraceSTL_ELBO())


@program(LEFT, says="Trace_ELBO")
def jit_trace() -> Setup:
    """`JitTrace_ELBO`"""
    return Setup(*local_normal(), fresh(5), JitTrace_ELBO(ignore_jit_warnings=True))


@program(LEFT, says="TraceGraph_ELBO")
def jit_trace_graph() -> Setup:
    """`JitTraceGraph_ELBO`"""
    return Setup(*local_normal(), fresh(5), JitTraceGraph_ELBO(ignore_jit_warnings=True))


@program(LEFT, says="TraceEnum_ELBO")
def jit_trace_enum() -> Setup:
    """`JitTraceEnum_ELBO`"""
    model, _ = two_components()
    elbo = JitTraceEnum_ELBO(max_plate_nesting=1, ignore_jit_warnings=True)
    return Setup(config_enumerate(model), lambda x: None, fresh(5), elbo)


@program(CAPTURED)
def a_function_as_loss() -> Setup:
    """A function as the loss: the bound with a penalty"""
    elbo = Trace_ELBO()

    def penalized(model: Any, guide: Any, *args: Any) -> Tensor:
        return elbo.differentiable_loss(model, guide, *args) + 0.1 * pyro.param("weight") ** 2

    return Setup(*local_normal(), fresh(5), penalized)


@program(CAPTURED)
def two_functions_as_loss() -> Setup:
    """Two functions, for the loss and for its gradients"""
    elbo = Trace_ELBO()

    def loss(model: Any, guide: Any, *args: Any) -> Any:
        return elbo.loss(model, guide, *args)

    def loss_and_grads(model: Any, guide: Any, *args: Any) -> Any:
        total = 2.0 * elbo.differentiable_loss(model, guide, *args)
        total.backward()
        return total.item()

    return Setup(*local_normal(), fresh(5), loss, loss_and_grads=loss_and_grads)


@program(CAPTURED)
def maximum_likelihood() -> Setup:
    """A density of the data as the loss, without a guide"""

    def model(x: Tensor) -> None:
        logit = pyro.param("logit", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=logit), obs=x)

    def loss(model: Any, guide: Any, *args: Any) -> Tensor:
        return -poutine.trace(model).get_trace(*args).log_prob_sum()

    return Setup(model, lambda x: None, [call(bits(6, seed=i)) for i in range(STEPS)], loss)
