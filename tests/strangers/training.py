"""What people change between steps: the parts of SVI, optimizers, parameters, modules, and what surrounds a step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

import pyro_vae as pv

from .runner import CAPTURED, LEFT, NOTICED, STEPS, Call, Setup, call, fresh, program, reals
from .small import changing, guide, observe


def _plain(x: Tensor) -> None:
    observe(x, 1.0)


def _wide(x: Tensor) -> None:
    observe(x, 2.0)


@program(NOTICED)
def another_model() -> Setup:
    """`svi.model = ...`"""
    return Setup(_plain, guide, fresh(5), before_step=lambda svi, i: setattr(svi, "model", _wide if i >= 7 else _plain))


@program(NOTICED)
def another_guide() -> Setup:
    """`svi.guide = ...`"""

    def narrow(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.1))

    return Setup(_plain, guide, fresh(5), before_step=lambda svi, i: setattr(svi, "guide", narrow if i >= 7 else guide))


@program(NOTICED)
def another_objective() -> Setup:
    """`svi.loss = ...` and `svi.loss_and_grads = ...`"""

    def before_step(svi: SVI, i: int) -> None:
        if i == 7:
            elbo = TraceMeanField_ELBO(num_particles=2)
            svi.loss, svi.loss_and_grads = elbo.loss, elbo.loss_and_grads

    return Setup(_plain, guide, fresh(5), before_step=before_step)


@program(NOTICED)
def an_attribute_of_the_objective() -> Setup:
    """`elbo.num_particles = ...`"""
    elbo = Trace_ELBO()
    return Setup(_plain, guide, fresh(5), elbo, before_step=lambda svi, i: setattr(elbo, "num_particles", 1 + i // 7))


@program(NOTICED)
def another_optimizer() -> Setup:
    """`svi.optim = ...`"""

    def before_step(svi: SVI, i: int) -> None:
        if i == 7:
            svi.optim = pv.Adam({"lr": 0.1})

    return Setup(_plain, guide, fresh(5), before_step=before_step)


@program(NOTICED)
def another_kind_of_optimizer() -> Setup:
    """`svi.optim = ...` from `pv.Adam` to Pyro's SGD"""

    def before_step(svi: SVI, i: int) -> None:
        if i == 7:
            svi.optim = pyro.optim.SGD({"lr": 0.01})

    return Setup(_plain, guide, fresh(5), before_step=before_step)


@program(NOTICED)
def the_state_of_the_optimizer_put_back() -> Setup:
    """`set_state` of an earlier `get_state` in mid-training"""
    kept: list[Any] = []

    def before_step(svi: SVI, i: int) -> None:
        if i == 5:
            kept.append(svi.optim.get_state())
        if i in (9, 13):
            svi.optim.set_state(kept[0])

    return Setup(_plain, guide, fresh(5), before_step=before_step)


@program(NOTICED)
def the_state_of_the_torch_optimizer_put_back() -> Setup:
    """`optimizer.load_state_dict` in mid-training"""
    optimizer = pv.Adam({"lr": 0.01})
    kept: list[Any] = []

    def before_step(svi: SVI, i: int) -> None:
        if i == 5:
            state = optimizer.optimizer.state_dict()
            kept.append(
                {**state, "state": {k: {n: t.clone() for n, t in s.items()} for k, s in state["state"].items()}}
            )
        if i == 9:
            optimizer.optimizer.load_state_dict(kept[0])

    return Setup(_plain, guide, fresh(5), optimizer=optimizer, before_step=before_step)


@program(NOTICED)
def a_learning_rate_set_by_hand() -> Setup:
    """`group["lr"] = ...` in mid-training"""
    optimizer = pv.Adam({"lr": 0.01})

    def before_step(svi: SVI, i: int) -> None:
        if i >= 7:
            for group in optimizer.optimizer.param_groups:
                group["lr"] = 0.1 / i

    return Setup(_plain, guide, fresh(5), optimizer=optimizer, before_step=before_step)


@program(CAPTURED)
def a_scheduler_of_pyro() -> Setup:
    """Pyro's `ExponentialLR` around `torch.optim.SGD`, stepped by hand"""
    options = {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.05}, "gamma": 0.9}
    optimizer = pyro.optim.ExponentialLR(options)
    return Setup(
        _plain,
        guide,
        fresh(5),
        optimizer=optimizer,
        before_step=lambda svi, i: optimizer.step() if i % 5 == 4 else None,
    )


@program(CAPTURED)
def clipped_adam() -> Setup:
    """`pyro.optim.ClippedAdam` with a decaying rate"""
    return Setup(_plain, guide, fresh(5), optimizer=pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.95, "clip_norm": 1.0}))


@program(CAPTURED)
def an_optimizer_for_each_parameter() -> Setup:
    """Options that depend on the parameter's name"""
    optimizer = pyro.optim.Adam(lambda name: {"lr": 0.1 if name == "loc" else 0.01})
    return Setup(_plain, guide, fresh(5), optimizer=optimizer)


@program(CAPTURED)
def gradients_before_the_step() -> Setup:
    """Gradients that are present before a step"""

    def before_step(svi: SVI, i: int) -> None:
        if i in (1, 2, 9):
            pyro.param("loc").grad = torch.tensor(3.0)

    return Setup(_plain, guide, fresh(5), before_step=before_step)


@program(CAPTURED, compiled=True)
def labels_now_and_then() -> Setup:
    """Parameters without a gradient in some steps, Adam's momentum going on (semi-supervised)"""

    def model(x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z * pyro.param("weight", torch.tensor(1.0)), 1.0), obs=x)
            if y is not None:
                pyro.sample("y", dist.Bernoulli(logits=pyro.param("slope", torch.tensor(0.5)) * z), obs=y)

    def local(x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("a", torch.tensor(0.5)) * x, 1.0))

    batches = [call(reals(5, seed=i), (reals(5, seed=i + 50) > 0).float() if i % 3 else None) for i in range(STEPS)]
    return Setup(model, local, batches)


@program(CAPTURED)
def registered_but_unused() -> Setup:
    """A module that is registered at every step and used in some"""
    labeler = nn.Linear(1, 1)

    def model(x: Tensor, labeled: bool) -> None:
        pyro.module("labeler", labeler)
        observe(x + labeler(x[:, None])[:, 0] if labeled else x, 1.0)

    return Setup(model, guide, [call(reals(5, seed=i), i % 3 == 1) for i in range(STEPS)], modules=(labeler,))


@program(NOTICED)
def frozen_and_thawed() -> Setup:
    """`requires_grad_` off and on"""
    network = nn.Linear(1, 1)

    def model(x: Tensor) -> None:
        pyro.module("network", network)
        observe(x + network(x[:, None])[:, 0], 1.0)

    def before_step(svi: SVI, i: int) -> None:
        network.weight.requires_grad_(not 6 <= i < 13)

    return Setup(model, guide, fresh(5), before_step=before_step, modules=(network,))


@program(NOTICED)
def the_store_cleared() -> Setup:
    """`pyro.clear_param_store()` in mid-training"""
    return changing(_plain, pyro.clear_param_store)


@program(NOTICED)
def a_parameter_set_by_hand() -> Setup:
    """`store["loc"] = ...` in mid-training"""
    return changing(_plain, lambda: pyro.get_param_store().__setitem__("loc", torch.tensor(1.0)))


@program(CAPTURED)
def a_parameter_written_in_place() -> Setup:
    """`param.data.fill_()` in mid-training"""
    return changing(_plain, lambda: pyro.param("loc").data.fill_(1.0))


@program(CAPTURED)
def a_handler_around_some_steps() -> Setup:
    """Some steps inside `poutine.scale`"""

    def run(svi: SVI, batches: list[Call]) -> list[Any]:
        losses = []
        for i, (args, kwargs) in enumerate(batches):
            with poutine.scale(scale=0.5) if i % 4 == 3 else contextlib.nullcontext():
                losses.append(svi.step(*args, **kwargs))
        return losses

    return Setup(_plain, guide, fresh(5), run=run)


@program(CAPTURED)
def two_runs_side_by_side() -> Setup:
    """Two SVI over the same model and parameters, in turn"""

    def run(svi: SVI, batches: list[Call]) -> list[Any]:
        other = type(svi)(
            _wide, guide, svi.optim, Trace_ELBO(), **({"compile": "graph"} if type(svi) is not SVI else {})
        )
        losses = []
        for args, kwargs in batches:
            losses += [svi.step(*args, **kwargs), other.step(*args, **kwargs)]
        return losses

    return Setup(_plain, guide, fresh(5), run=run)


@program(CAPTURED)
def validation_in_training_mode() -> Setup:
    """`evaluate_loss` between the steps, with dropout and batch normalization in training mode"""
    network = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Dropout(0.3), nn.Linear(3, 1))

    def model(x: Tensor) -> None:
        pyro.module("network", network)
        observe(x + network(x[:, None])[:, 0], 1.0)

    def run(svi: SVI, batches: list[Call]) -> list[Any]:
        losses = []
        for args, kwargs in batches:
            losses += [svi.step(*args, **kwargs), svi.evaluate_loss(reals(9), **kwargs)]
        return losses

    return Setup(model, guide, fresh(5), run=run, modules=(network,))


@program(CAPTURED)
def validation_in_evaluation_mode() -> Setup:
    """`eval()`, `evaluate_loss`, `train()` after every fourth step"""
    network = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Dropout(0.3), nn.Linear(3, 1))

    def model(x: Tensor) -> None:
        pyro.module("network", network)
        observe(x + network(x[:, None])[:, 0], 1.0)

    def run(svi: SVI, batches: list[Call]) -> list[Any]:
        losses = []
        for i, (args, kwargs) in enumerate(batches):
            losses.append(svi.step(*args, **kwargs))
            if i % 4 == 3:
                network.eval()
                losses.append(svi.evaluate_loss(reals(9), **kwargs))
                network.train()
        return losses

    return Setup(model, guide, fresh(5), run=run, modules=(network,))


@program(CAPTURED)
def seeds_between_steps() -> Setup:
    """`pyro.set_rng_seed` before every step"""
    return Setup(_plain, guide, fresh(5), before_step=lambda svi, i: pyro.set_rng_seed(i))


@program(CAPTURED)
def an_error_in_mid_training() -> Setup:
    """A batch of wrong shape whose error is caught"""

    def model(x: Tensor) -> None:
        observe(x, torch.ones(5))

    def run(svi: SVI, batches: list[Call]) -> list[Any]:
        losses = []
        for args, kwargs in batches:
            try:
                losses.append(svi.step(*args, **kwargs))
            except (ValueError, RuntimeError):
                losses.append(-1.0)
        return losses

    return Setup(model, guide, [call(reals(4 if i % 6 == 5 else 5, seed=i)) for i in range(STEPS)], run=run)


@program(CAPTURED)
def parameters_that_appear_later() -> Setup:
    """A part of the model that is switched on in mid-training by a flag among the arguments"""

    def model(x: Tensor, deep: bool) -> None:
        observe(x - pyro.param("shift", torch.tensor(0.2)) if deep else x, 1.0)

    return Setup(model, guide, [call(reals(5, seed=i), i >= 6) for i in range(STEPS)])


def _hooked(hook: Callable[[list[float]], Callable[[Tensor], Any]], first: int) -> Setup:
    """A program that registers a hook of the gradient of a parameter, and whose losses are followed by its notes."""
    notes: list[float] = []

    def run(svi: SVI, batches: list[Call]) -> list[Any]:
        losses = []
        for i, (args, kwargs) in enumerate(batches):
            if i == first:
                pyro.get_param_store()._params["loc"].register_hook(hook(notes))
            losses.append(svi.step(*args, **kwargs))
        return losses + notes

    return Setup(_plain, guide, fresh(5), run=run)


@program(LEFT, says="hook")
def norms_of_gradients() -> Setup:
    """`register_hook` that notes the norm of a gradient, from the second step on"""
    return _hooked(lambda notes: lambda grad: notes.append(grad.norm().item()), 1)


@program(LEFT, says="hook")
def norms_of_gradients_later() -> Setup:
    """`register_hook` that notes the norm of a gradient, registered in mid-training"""
    return _hooked(lambda notes: lambda grad: notes.append(grad.norm().item()), 7)


@program(LEFT, says="hook")
def scaled_gradients() -> Setup:
    """`register_hook` that scales a gradient, registered in mid-training"""
    return _hooked(lambda notes: lambda grad: 0.5 * grad, 7)


@program(NOTICED)
def a_forward_hook_in_mid_training() -> Setup:
    """`register_forward_hook` in mid-training"""
    network = nn.Linear(1, 1)

    def model(x: Tensor) -> None:
        pyro.module("network", network)
        observe(x + network(x[:, None])[:, 0], 1.0)

    return changing(model, lambda: network.register_forward_hook(lambda module, args, output: 0.5 * output))


@program(NOTICED)
def a_forward_replaced() -> Setup:
    """`network.forward = ...` in mid-training"""
    network = nn.Linear(1, 1)

    def model(x: Tensor) -> None:
        pyro.module("network", network)
        observe(x + network(x[:, None])[:, 0], 1.0)

    return changing(model, lambda: setattr(network, "forward", lambda x: 0.5 * x @ network.weight))


@program(NOTICED)
def data_of_a_parameter_replaced() -> Setup:
    """`parameter.data = ...` in mid-training"""
    return changing(_plain, lambda: setattr(pyro.get_param_store()._params["loc"], "data", torch.tensor(1.0)))


@program(CAPTURED)
def weights_loaded() -> Setup:
    """`module.load_state_dict` in mid-training"""
    network = nn.Linear(1, 1)
    other = {name: value + 1 for name, value in network.state_dict().items()}

    def model(x: Tensor) -> None:
        pyro.module("network", network)
        observe(x + network(x[:, None])[:, 0], 1.0)

    return changing(model, lambda: network.load_state_dict(other))._replace(modules=(network,))


@program(NOTICED)
def a_store_loaded() -> Setup:
    """`store.get_state()` and `store.set_state(...)` in mid-training"""
    kept: list[Any] = []

    def before_step(svi: SVI, i: int) -> None:
        store = pyro.get_param_store()
        if i == 4:
            state = store.get_state()
            kept.append(
                {**state, "params": {k: p.detach().clone().requires_grad_() for k, p in state["params"].items()}}
            )
        if i == 9:
            store.set_state(kept[0])

    return Setup(_plain, guide, fresh(5), before_step=before_step)


@program(NOTICED)
def a_layer_appended() -> Setup:
    """`ModuleList.append` in mid-training"""
    layers = nn.ModuleList([nn.Linear(1, 1)])

    def model(x: Tensor) -> None:
        pyro.module("layers", layers)
        y = x[:, None]
        for layer in layers:
            y = layer(y)
        observe(x + y[:, 0], 1.0)

    return changing(model, lambda: layers.append(nn.Linear(1, 1)))


@program(NOTICED)
def a_buffer_replaced() -> Setup:
    """`module.mean = tensor`, a buffer bound anew between steps"""
    module = nn.Module()
    module.register_buffer("mean", torch.zeros(()))
    return changing(lambda x: observe(x - module.mean, 1.0), lambda: setattr(module, "mean", torch.tensor(1.0)))


def _surrounded(make: Callable[[int], Any]) -> Setup:
    """A program with a linear layer, each of whose steps is taken inside a context."""
    network = nn.Linear(1, 1)

    def model(x: Tensor) -> None:
        pyro.module("network", network)
        observe(x + network(x[:, None])[:, 0].float(), 1.0)

    def run(svi: SVI, batches: list[Call]) -> list[Any]:
        losses = []
        for i, (args, kwargs) in enumerate(batches):
            with make(i):
                losses.append(svi.step(*args, **kwargs))
        return losses

    return Setup(model, guide, fresh(5), run=run, modules=(network,))


@program(CAPTURED)
def autocast_around_some_steps() -> Setup:
    """`torch.autocast` around some steps"""
    return _surrounded(lambda i: torch.autocast("cpu", torch.bfloat16, enabled=i % 4 > 1))


@program(CAPTURED)
def validation_off_around_some_steps() -> Setup:
    """`pyro.validation_enabled(False)` around some steps"""
    return _surrounded(lambda i: pyro.validation_enabled(i % 4 > 1))


@program(CAPTURED)
def anomalies_watched_around_some_steps() -> Setup:
    """`torch.autograd.set_detect_anomaly` around some steps"""
    return _surrounded(lambda i: torch.autograd.set_detect_anomaly(i % 4 > 1))


@program(CAPTURED)
def another_device_context() -> Setup:
    """`torch.device("cpu")` as a context"""
    return _surrounded(lambda i: torch.device("cpu") if i % 4 > 1 else contextlib.nullcontext())


@program(CAPTURED)
def a_trace_around_some_steps() -> Setup:
    """`poutine.trace` around some steps, as `pyro.infer.util` users do"""
    return _surrounded(lambda i: poutine.trace(param_only=True) if i % 4 > 1 else contextlib.nullcontext())


@program(NOTICED)
def another_default_type() -> Setup:
    """`torch.set_default_dtype` in mid-training"""

    def run(svi: SVI, batches: list[Call]) -> list[Any]:
        losses = []
        try:
            for i, (args, kwargs) in enumerate(batches):
                torch.set_default_dtype(torch.float64 if i >= 7 else torch.float32)
                losses.append(svi.step(*args, **kwargs))
        finally:
            torch.set_default_dtype(torch.float32)
        return losses

    return Setup(lambda x: observe(x, torch.tensor(0.3) * 3), guide, fresh(5), run=run)


@program(LEFT, says="requires a gradient and is no parameter")
def two_optimizers_in_turn() -> Setup:
    """Two SVI with optimizers of their own for two halves of the parameters"""

    def half(name: str) -> Callable[..., None]:
        def model(x: Tensor) -> None:
            with poutine.block(hide_fn=lambda site: site["type"] == "param" and site["name"] != name):
                shift = pyro.param("a", torch.tensor(0.1)) + pyro.param("b", torch.tensor(0.2))
            observe(x - shift, 1.0)

        return model

    def run(svi: SVI, batches: list[Call]) -> list[Any]:
        options = {} if type(svi) is SVI else {"compile": "graph"}
        other = type(svi)(half("b"), guide, pv.Adam({"lr": 0.05}), Trace_ELBO(), **options)
        losses = []
        for args, kwargs in batches:
            losses += [svi.step(*args, **kwargs), other.step(*args, **kwargs)]
        return losses

    return Setup(half("a"), guide, fresh(5), run=run)
