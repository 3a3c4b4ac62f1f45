"""Python state that a graph cannot see: what is watched, what stops a capture, and what the audit finds."""

from __future__ import annotations

import argparse
import collections
import contextlib
import enum
import itertools
import random
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import constraints

import pyro_vae as pv

from .runner import AUDIT, CAPTURED, LEFT, NOTICED, STEPS, Call, Setup, call, fresh, program, reals, without_arguments

SETTINGS = types.SimpleNamespace(beta=1.0)  # a global object of settings; every program that uses it sets it first
WEIGHT = 1.0  # a global number


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


# -- attribute chains and bindings -------------------------------------------------------------------------------------


@program(NOTICED)
def options_of_the_command_line() -> Setup:
    """`args.beta` of a namespace"""
    args = argparse.Namespace(beta=1.0)
    return changing(lambda x: observe(x, args.beta), lambda: setattr(args, "beta", 2.0))


@program(NOTICED)
def a_global_namespace() -> Setup:
    """`SETTINGS.beta` of a global object"""
    SETTINGS.beta = 1.0

    def model(x: Tensor) -> None:
        observe(x, SETTINGS.beta)

    return changing(model, lambda: setattr(SETTINGS, "beta", 2.0))


@program(NOTICED)
def a_global_number() -> Setup:
    """A global that a helper of a helper reads"""

    def bind(value: float) -> None:
        globals()["WEIGHT"] = value

    bind(1.0)
    return changing(_reads_a_global, lambda: bind(2.0))


def _reads_a_global(x: Tensor) -> None:
    _helper_of_a_helper(x)


def _helper_of_a_helper(x: Tensor) -> None:
    observe(x, WEIGHT)


@program(NOTICED)
def a_class_attribute() -> Setup:
    """`Cfg.beta` of a class"""

    class Cfg:
        beta = 1.0

    return changing(lambda x: observe(x, Cfg.beta), lambda: setattr(Cfg, "beta", 2.0))


@program(NOTICED)
def a_module_attribute() -> Setup:
    """`module.BETA` of a Python module"""
    module = types.ModuleType("settings_of_the_user")
    module.BETA = 1.0
    return changing(lambda x: observe(x, module.BETA), lambda: setattr(module, "BETA", 2.0))


@program(NOTICED)
def an_attribute_of_an_attribute() -> Setup:
    """`self.cfg.beta` in a method and in the helper that it calls"""

    class Story:
        def __init__(self) -> None:
            self.cfg = types.SimpleNamespace(model=types.SimpleNamespace(beta=1.0))

        def weight(self) -> float:
            return self.cfg.model.beta

        def model(self, x: Tensor) -> None:
            observe(x, self.weight())

    story = Story()
    return changing(story.model, lambda: setattr(story.cfg.model, "beta", 2.0))


@program(NOTICED)
def an_attribute_read_in_forward() -> Setup:
    """`self.cfg.slope` in the `forward` of a module inside a module"""

    class Scaled(nn.Module):
        def __init__(self, cfg: Any) -> None:
            super().__init__()
            self.cfg = cfg

        def forward(self, x: Tensor) -> Tensor:
            return self.cfg.slope * x

    cfg = types.SimpleNamespace(slope=1.0)
    network = nn.Sequential(nn.Linear(1, 1), Scaled(cfg))

    def model(x: Tensor) -> None:
        pyro.module("network", network)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z + network(x[:, None])[:, 0], 1.0), obs=x)

    return changing(model, lambda: setattr(cfg, "slope", 2.0))


@program(NOTICED)
def a_property() -> Setup:
    """A property that computes from a private attribute"""

    class Story:
        _beta = 1.0

        @property
        def beta(self) -> float:
            return 2 * self._beta

    story = Story()
    return changing(lambda x: observe(x, story.beta), lambda: setattr(story, "_beta", 2.0))


@program(NOTICED)
def a_slot() -> Setup:
    """An attribute in `__slots__`"""

    class Cfg:
        __slots__ = ("beta",)

    cfg = Cfg()
    cfg.beta = 1.0
    return changing(lambda x: observe(x, cfg.beta), lambda: setattr(cfg, "beta", 2.0))


def _replaced(first: Any, second: Any, read: Callable[[Any], Any]) -> Setup:
    """A program whose closed-over variable is bound to another object before the 8th step."""
    value = first

    def model(x: Tensor) -> None:
        observe(x, read(value))

    def change() -> None:
        nonlocal value
        value = second

    return changing(model, change)


@program(NOTICED)
def a_list_replaced() -> Setup:
    """A list bound anew"""
    return _replaced([1.0], [2.0], lambda value: value[0])


@program(NOTICED)
def an_array_replaced() -> Setup:
    """A numpy array bound anew"""
    return _replaced(np.array([1.0]), np.array([2.0]), lambda value: float(value[0]))


@program(NOTICED)
def a_tuple_replaced() -> Setup:
    """A tuple of tuples bound anew"""
    return _replaced(((1.0,), "a"), ((2.0,), "a"), lambda value: value[0][0])


@program(NOTICED)
def a_class_replaced() -> Setup:
    """A distribution class bound anew"""
    distribution = dist.Normal

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", distribution(z, 1.0), obs=x)

    def change() -> None:
        nonlocal distribution
        distribution = dist.Laplace

    return changing(model, change)


@program(NOTICED)
def a_builtin_replaced() -> Setup:
    """A builtin function bound anew"""
    return _replaced(max, min, lambda value: value(1.0, 2.0))


@program(NOTICED)
def an_enum_replaced() -> Setup:
    """An enum member bound anew"""

    class Family(enum.Enum):
        NARROW = 1.0
        WIDE = 2.0

    return _replaced(Family.NARROW, Family.WIDE, lambda value: value.value)


@program(NOTICED)
def a_numpy_scalar_replaced() -> Setup:
    """A numpy scalar bound anew"""
    return _replaced(np.float64(1.0), np.float64(2.0), lambda value: value)


@program(NOTICED)
def a_function_replaced() -> Setup:
    """An activation function bound anew"""
    return _replaced(torch.sigmoid, torch.tanh, lambda value: value(torch.tensor(1.0)))


@program(NOTICED)
def a_default_replaced() -> Setup:
    """The defaults of the model changed"""

    def model(x: Tensor, weight: float = 1.0) -> None:
        observe(x, weight)

    return changing(model, lambda: setattr(model, "__defaults__", (2.0,)))


@program(NOTICED)
def a_closed_over_tensor_replaced() -> Setup:
    """A tensor bound anew"""
    return _replaced(torch.tensor(1.0), torch.tensor(2.0), lambda value: value)


@program(CAPTURED)
def a_closed_over_tensor_written() -> Setup:
    """A tensor written in place: an input of the graph"""
    weight = torch.tensor(1.0)
    return changing(lambda x: observe(x, weight), lambda: weight.fill_(2.0))


@program(NOTICED)
def a_whole_set_replaced() -> Setup:
    """`self.data` bound to other data of another length"""

    class Story:
        def __init__(self) -> None:
            self.data = reals(5)

        def model(self) -> None:
            observe(self.data, 1.0)

    story = Story()

    def before_step(svi: SVI, i: int) -> None:
        if i in (7, 12):
            story.data = reals(5 if i == 7 else 8, seed=i)

    return Setup(story.model, guide, without_arguments(), before_step=before_step)


# -- contents that change ----------------------------------------------------------------------------------------------


@program(NOTICED)
def a_list_written() -> Setup:
    """The contents of a list"""
    weights = [1.0]
    return changing(lambda x: observe(x, weights[0]), lambda: weights.__setitem__(0, 2.0))


@program(NOTICED)
def a_dictionary_written() -> Setup:
    """The contents of a dictionary"""
    options = {"weight": 1.0}
    return changing(lambda x: observe(x, options["weight"]), lambda: options.update(weight=2.0))


@program(AUDIT, says="compared with Pyro")
def an_array_written() -> Setup:
    """The contents of a numpy array"""
    weights = np.array([1.0])
    return changing(lambda x: observe(x, float(weights[0])), lambda: weights.__setitem__(0, 2.0))


@program(NOTICED)
def a_deep_structure_written() -> Setup:
    """A number deep inside dictionaries and lists of an object"""

    class Story:
        def __init__(self) -> None:
            self.options = {"likelihood": [{"weight": 1.0}]}

        def model(self, x: Tensor) -> None:
            observe(x, self.options["likelihood"][0]["weight"])

    story = Story()
    return changing(story.model, lambda: story.options["likelihood"][0].update(weight=2.0))


# -- state that the run itself changes ---------------------------------------------------------------------------------


@program(LEFT, says="count")
def a_counter() -> Setup:
    """A counter in an attribute"""

    class Story:
        count = 0

        def model(self, x: Tensor) -> None:
            self.count += 1
            observe(x, 1.0 / self.count)

    return Setup(Story().model, guide, fresh(5))


@program(LEFT, says="changes state")
def a_counter_in_a_list() -> Setup:
    """A counter in a list"""
    calls = [0]

    def model(x: Tensor) -> None:
        calls[0] += 1
        observe(x, 1.0 / calls[0])

    return Setup(model, guide, fresh(5))


@program(LEFT, says="calls")
def a_counter_in_a_closure() -> Setup:
    """A counter in a closed-over variable"""
    calls = 0

    def model(x: Tensor) -> None:
        nonlocal calls
        calls += 1
        observe(x, 1.0 / calls)

    return Setup(model, guide, fresh(5))


@program(LEFT, says="list_iterator")
def an_iterator() -> Setup:
    """`next()` of an iterator over data"""
    stream = iter([reals(5, seed=i) for i in range(400)])

    def model() -> None:
        observe(next(stream), 1.0)

    return Setup(model, guide, without_arguments())


@program(LEFT, says="itertools.count")
def a_count() -> Setup:
    """`next()` of `itertools.count`"""
    steps = itertools.count(1)

    def model(x: Tensor) -> None:
        observe(x, 1.0 / next(steps))

    return Setup(model, guide, fresh(5))


@program(LEFT, says="generator")
def a_generator_function() -> Setup:
    """`next()` of a generator function"""

    def schedule() -> Any:
        weight = 1.0
        while True:
            yield weight
            weight *= 0.9

    weights = schedule()
    return Setup(lambda x: observe(x, next(weights)), guide, fresh(5))


@program(LEFT, says="generator")
def a_minibatch_by_numpy() -> Setup:
    """A mini-batch drawn inside the model by `np.random.default_rng`"""
    generator = np.random.default_rng(0)
    data = reals(30)

    def model() -> None:
        rows = torch.from_numpy(generator.choice(30, 5, replace=False))
        observe(data[rows], 1.0)

    return Setup(model, guide, without_arguments())


@program(LEFT, says="numpy")
def global_numpy_random_numbers() -> Setup:
    """A number of `np.random`"""
    return Setup(lambda x: observe(x, float(np.random.rand())), guide, fresh(5))


@program(LEFT, says="generator")
def a_generator_of_python() -> Setup:
    """A number of `random.Random`"""
    generator = random.Random(0)
    return Setup(lambda x: observe(x, generator.random()), guide, fresh(5))


@program(LEFT, says="random")
def global_python_random_numbers() -> Setup:
    """A number of `random`"""
    return Setup(lambda x: observe(x, random.random()), guide, fresh(5))


@program(LEFT, says="enerator")
def a_generator_of_torch() -> Setup:
    """Numbers of a `torch.Generator` of one's own"""
    generator = torch.Generator().manual_seed(3)
    return Setup(lambda x: observe(x + torch.randn(5, generator=generator), 1.0), guide, fresh(5))


@program(LEFT, says="seed")
def a_seed_in_the_guide() -> Setup:
    """A seed set inside the guide"""

    def seeded(x: Tensor) -> None:
        torch.manual_seed(0)
        guide()

    return Setup(lambda x: observe(x, 1.0), seeded, fresh(5))


@program(LEFT, says="changes state")
def a_history_in_a_list() -> Setup:
    """A model that appends what it saw to a list"""
    seen: list[int] = []

    def model(x: Tensor) -> None:
        seen.append(len(x))
        observe(x, 1.0 / len(seen))

    return Setup(model, guide, fresh(5))


@program(CAPTURED)
def a_lazy_cache() -> Setup:
    """A grid made at the first call and kept in an attribute"""

    class Story:
        grid: Tensor | None = None

        def model(self, x: Tensor) -> None:
            if self.grid is None:
                self.grid = torch.linspace(0.5, 1.0, 5)
            observe(x, self.grid)

    return Setup(Story().model, guide, fresh(5))


@program(LEFT, says="changes state")
def a_memo_in_a_defaultdict() -> Setup:
    """Numbers of calls kept in a `defaultdict`"""
    counts: dict[str, int] = collections.defaultdict(int)

    def model(x: Tensor) -> None:
        counts["model"] += 1
        observe(x, 1.0 / counts["model"])

    return Setup(model, guide, fresh(5))


@program(CAPTURED)
def a_running_mean() -> Setup:
    """A buffer that the model updates in place"""

    class Centered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(()))

        def model(self, x: Tensor) -> None:
            self.mean.mul_(0.9).add_(0.1 * x.mean())
            observe(x - self.mean, 1.0)

    story = Centered()
    return Setup(story.model, guide, fresh(5), modules=(story,))


@program(LEFT, says="mean")
def a_running_mean_bound_anew() -> Setup:
    """A buffer that the model binds to a new tensor at every call"""

    class Centered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(()))

        def model(self, x: Tensor) -> None:
            self.mean = 0.9 * self.mean + 0.1 * x.mean()
            observe(x - self.mean, 1.0)

    story = Centered()
    return Setup(story.model, guide, fresh(5), modules=(story,))


# -- the optimizer, and what belongs to SVI ----------------------------------------------------------------------------


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
