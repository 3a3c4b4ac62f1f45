"""Python state that is bound or written anew in mid-training: what is watched, and what the audit finds."""

from __future__ import annotations

import argparse
import collections
import contextvars
import dataclasses
import enum
import fractions
import functools
import os
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from torch import Tensor, nn

from .runner import AUDIT, CAPTURED, NOTICED, Setup, fresh, program, reals, without_arguments
from .small import changing, guide, observe

SETTINGS = types.SimpleNamespace(beta=1.0)  # a global object of settings; every program that uses it sets it first
WEIGHT = 1.0  # a global number


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


@program(NOTICED)
def contents_of_a_queue() -> Setup:
    """The contents of a `deque`"""
    weights = collections.deque([1.0], maxlen=1)
    return changing(lambda x: observe(x, weights[0]), lambda: weights.append(2.0))


@program(AUDIT, says="compared with Pyro")
def the_environment() -> Setup:
    """`os.environ`"""
    os.environ["BETA_OF_THE_STRANGERS"] = "1.0"
    return changing(
        lambda x: observe(x, float(os.environ["BETA_OF_THE_STRANGERS"])),
        lambda: os.environ.__setitem__("BETA_OF_THE_STRANGERS", "2.0"),
    )


@program(AUDIT, says="compared with Pyro")
def a_context_variable() -> Setup:
    """A `ContextVar`"""
    weight = contextvars.ContextVar("weight", default=1.0)
    return changing(lambda x: observe(x, weight.get()), lambda: weight.set(2.0))


@program(AUDIT, says="compared with Pyro")
def options_behind_getattr() -> Setup:
    """An object of options that answers by `__getattr__`"""

    class Options:
        def __init__(self, **values: Any) -> None:
            vars(self)["_tree"] = {"inner": values}

        def __getattr__(self, name: str) -> Any:
            return vars(self)["_tree"]["inner"][name]

    options = Options(beta=1.0)
    return changing(lambda x: observe(x, options.beta), lambda: options._tree["inner"].update(beta=2.0))


@program(AUDIT, says="compared with Pyro")
def a_name_put_together() -> Setup:
    """`getattr(cfg, "be" + "ta")`"""
    cfg = types.SimpleNamespace(inner=types.SimpleNamespace(beta=1.0))
    return changing(lambda x: observe(x, getattr(cfg.inner, "be" + "ta"[:2])), lambda: setattr(cfg.inner, "beta", 2.0))


@program(AUDIT, says="compared with Pyro")
def an_import_inside_the_model() -> Setup:
    """`import settings` inside the model"""
    module = sys.modules["settings_of_the_strangers"] = types.ModuleType("settings_of_the_strangers")
    module.BETA = 1.0

    def model(x: Tensor) -> None:
        import settings_of_the_strangers as settings

        observe(x, settings.BETA)

    return changing(model, lambda: setattr(module, "BETA", 2.0))


@program(NOTICED)
def a_dataclass_replaced() -> Setup:
    """`self.cfg = dataclasses.replace(self.cfg, ...)`"""

    @dataclasses.dataclass(frozen=True)
    class Cfg:
        beta: float = 1.0

    class Story:
        cfg = Cfg()

        def model(self, x: Tensor) -> None:
            observe(x, self.cfg.beta)

    story = Story()
    return changing(story.model, lambda: setattr(story, "cfg", dataclasses.replace(story.cfg, beta=2.0)))


@program(NOTICED)
def a_fraction_replaced() -> Setup:
    """A `Fraction` bound anew"""
    return _replaced(fractions.Fraction(1, 2), fractions.Fraction(3, 2), float)


@program(NOTICED)
def a_range_replaced() -> Setup:
    """A `range` bound anew"""
    return _replaced(range(1), range(3), len)


@program(NOTICED)
def a_callable_object() -> Setup:
    """A model that is an object with `__call__`"""

    class Story:
        weight = 1.0

        def __call__(self, x: Tensor) -> None:
            observe(x, self.weight)

    story = Story()
    return changing(story, lambda: setattr(story, "weight", 2.0))


@program(NOTICED)
def a_partial() -> Setup:
    """`functools.partial`, whose keywords are changed"""
    model = functools.partial(observe, weight=1.0)
    return changing(model, lambda: model.keywords.update(weight=2.0))


@program(NOTICED)
def an_attribute_of_a_base_class() -> Setup:
    """A class attribute of a base class, read in a `classmethod`"""

    class Base:
        beta = 1.0

        @classmethod
        def weight(cls) -> float:
            return cls.beta

    class Story(Base):
        def model(self, x: Tensor) -> None:
            observe(x, self.weight())

    return changing(Story().model, lambda: setattr(Base, "beta", 2.0))


@program(NOTICED)
def a_method_replaced() -> Setup:
    """A method of the class replaced"""

    class Story:
        def weight(self) -> float:
            return 1.0

        def model(self, x: Tensor) -> None:
            observe(x, self.weight())

    return changing(Story().model, lambda: setattr(Story, "weight", lambda self: 2.0))


@program(NOTICED)
def a_decorated_model() -> Setup:
    """A decorator with a closed-over number, `functools.wraps`"""
    weight = 1.0

    def weighted(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def inner(x: Tensor) -> None:
            function(x, weight)

        return inner

    def change() -> None:
        nonlocal weight
        weight = 2.0

    return changing(weighted(observe), change)


@program(CAPTURED)
def the_shape_of_closed_over_data() -> Setup:
    """`data.shape[0]`, `data.dtype` and `data.mT` of a closed-over tensor"""
    data = reals(5, 2)

    def model() -> None:
        assert data.dtype == torch.get_default_dtype()
        observe(data.mT[0], 1.0 / data.shape[0])

    return Setup(model, guide, without_arguments())


@program(CAPTURED)
def the_shape_of_an_array() -> Setup:
    """`array.shape[0]`, `array.T` of a closed-over numpy array"""
    array = np.arange(6.0).reshape(2, 3)
    return Setup(lambda x: observe(x, 1.0 / array.shape[0] + float(array.T[1, 0])), guide, fresh(5))


@program(CAPTURED)
def options_in_a_named_tuple() -> Setup:
    """A field of a closed-over named tuple and of a frozen data class, and a property"""

    @dataclasses.dataclass(frozen=True)
    class Cfg:
        beta: float = 1.0

        @property
        def half(self) -> float:
            return 0.5 * self.beta

    options, cfg = collections.namedtuple("Options", "beta")(0.5), Cfg()
    return Setup(lambda x: observe(x, options.beta * cfg.beta + cfg.half), guide, fresh(5))


@program(CAPTURED)
def filters_of_warnings() -> Setup:
    """`warnings.catch_warnings()` and `warnings.simplefilter` inside the model"""

    def model(x: Tensor) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            observe(x, 1.0)

    return changing(model, lambda: warnings.filterwarnings("ignore", message="nobody says this"))


@program(CAPTURED)
def a_cached_helper() -> Setup:
    """`functools.lru_cache` around a helper"""

    @functools.lru_cache
    def grid(n: int) -> Tensor:
        return torch.linspace(0.5, 1.0, n)

    return Setup(lambda x: observe(x, grid(len(x))), guide, fresh(5))


@program(NOTICED)
def a_layer_in_a_plain_list() -> Setup:
    """Layers in a plain list, one of them replaced"""

    class Story(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.functions = [torch.tanh, torch.sigmoid]

        def model(self, x: Tensor) -> None:
            weight = x.mean()
            for function in self.functions:
                weight = function(weight)
            observe(x, weight)

    story = Story()
    return changing(story.model, lambda: story.functions.__setitem__(1, torch.exp))
