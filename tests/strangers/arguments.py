"""Arguments that are not one tensor."""

from __future__ import annotations

import argparse
import collections
import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from .runner import CAPTURED, LEFT, STEPS, Setup, call, fresh, program, reals, without_arguments


def guide(*args: Any, **kwargs: Any) -> None:
    """q(z) = N(loc, scale) for one latent variable."""
    scale = pyro.param("scale", torch.tensor(0.3), constraint=constraints.positive)
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), scale))


def observe(x: Tensor, weight: Any = 1.0) -> None:
    """z ~ N(0, 1), x_n ~ N(weight z, 1)."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(weight * z, 1.0), obs=x)


def every_step(make: Any) -> list[Any]:
    return [call(make(reals(5, seed=i), i)) for i in range(STEPS)]


@program(CAPTURED, compiled=True)
def no_arguments() -> Setup:
    """None: the data are closed over"""
    data = reals(5)
    return Setup(lambda: observe(data), guide, without_arguments())


@program(CAPTURED)
def only_numbers() -> Setup:
    """Python numbers alone"""
    data = reals(5)
    return Setup(lambda weight: observe(data, weight), guide, [call(1.0 + i // 10) for i in range(STEPS)])


@program(CAPTURED, compiled=True)
def a_dictionary() -> Setup:
    """A dictionary of tensors, keys in any order"""
    batches = [
        call(
            {"x": reals(5, seed=i), "w": torch.tensor(1.0 + i)}
            if i % 2
            else {"w": torch.tensor(1.0 + i), "x": reals(5, seed=i)}
        )
        for i in range(STEPS)
    ]
    return Setup(lambda batch: observe(batch["x"], batch["w"]), guide, batches)


@program(CAPTURED)
def a_dictionary_unpacked() -> Setup:
    """`svi.step(**batch)`"""
    batches = [call(x=reals(5, seed=i), weight=torch.tensor(1.0 + i)) for i in range(STEPS)]
    return Setup(lambda x, weight: observe(x, weight), guide, batches)


@program(CAPTURED)
def nested_tuples() -> Setup:
    """Tuples in lists in dictionaries, `None` among them"""

    def model(batch: dict[str, Any]) -> None:
        (x, weight), nothing = batch["parts"]
        observe(x, weight if nothing is None else 0.0)

    return Setup(model, guide, every_step(lambda x, i: {"parts": [(x, torch.tensor(1.0 + i)), None]}))


class Batch(NamedTuple):
    x: Tensor
    weight: Tensor


@dataclasses.dataclass
class Record:
    x: Tensor
    weight: float


@program(CAPTURED)
def a_named_tuple() -> Setup:
    """A named tuple of tensors"""
    return Setup(lambda b: observe(b.x, b.weight), guide, every_step(lambda x, i: Batch(x, torch.tensor(1.0 + i))))


@program(LEFT, says="as tensors")
def a_data_class() -> Setup:
    """A data class of a tensor and a number, another one at every step"""
    return Setup(lambda b: observe(b.x, b.weight), guide, every_step(lambda x, i: Record(x, 1.0 + i)))


@program(CAPTURED)
def a_data_class_of_few_values() -> Setup:
    """A data class of a tensor and a number, one of two"""
    return Setup(lambda b: observe(b.x, b.weight), guide, every_step(lambda x, i: Record(x, 1.0 + i // 10)))


@program(CAPTURED)
def a_namespace() -> Setup:
    """A namespace"""
    batches = [call(reals(5, seed=i), argparse.Namespace(weight=1.0 + i // 5)) for i in range(STEPS)]
    return Setup(lambda x, args: observe(x, args.weight), guide, batches)


@program(CAPTURED)
def a_namespace_that_changes() -> Setup:
    """One namespace as an argument of every step, changed between steps"""
    args = argparse.Namespace(weight=1.0)
    return Setup(
        lambda x, args: observe(x, args.weight),
        guide,
        [call(reals(5, seed=i), args) for i in range(STEPS)],
        before_step=lambda svi, i: setattr(args, "weight", 1.0 + i // 5),
    )


class Options:
    """An object with the hash of its identity."""

    weight = 1.0


@program(LEFT, says="Options")
def a_mutated_object() -> Setup:
    """An object of one's own as an argument, changed between steps"""
    options = Options()
    return Setup(
        lambda x, options: observe(x, options.weight),
        guide,
        [call(reals(5, seed=i), options) for i in range(STEPS)],
        before_step=lambda svi, i: setattr(options, "weight", 1.0 + i // 5),
    )


@program(CAPTURED)
def a_mutated_list() -> Setup:
    """One list of numbers as an argument, changed between steps"""
    weights = [1.0]
    return Setup(
        lambda x, weights: observe(x, weights[0]),
        guide,
        [call(reals(5, seed=i), weights) for i in range(STEPS)],
        before_step=lambda svi, i: weights.__setitem__(0, 1.0 + i // 5),
    )


@program(LEFT, says="torch.as_tensor")
def a_numpy_array() -> Setup:
    """A numpy array"""
    return Setup(lambda x: observe(torch.from_numpy(x)), guide, every_step(lambda x, i: x.numpy().astype("float32")))


@program(CAPTURED)
def numpy_scalars() -> Setup:
    """Numpy scalars and a numpy bool"""
    batches = [call(reals(5, seed=i), np.float64(1.0 + i // 10), flip=np.bool_(i % 2)) for i in range(STEPS)]
    return Setup(lambda x, w, flip: observe(x, -float(w) if flip else float(w)), guide, batches)


@program(LEFT, says="iterator")
def an_iterator_over_batches() -> Setup:
    """An iterator over batches"""
    stream = iter([reals(5, seed=i) for i in range(400)])
    return Setup(lambda s: observe(next(s)), guide, [call(stream) for _ in range(STEPS)])


@program(LEFT, says="changes its arguments")
def a_defaultdict() -> Setup:
    """A `defaultdict` whose default the model uses"""

    def model(batch: Any) -> None:
        observe(batch["x"], 1.0 + sum(batch["missing"]))

    def make(x: Tensor, i: int) -> Any:
        batch: Any = collections.defaultdict(list)
        batch["x"] = x
        return batch

    return Setup(model, guide, every_step(make))


@program(CAPTURED)
def an_ordered_dict() -> Setup:
    """An `OrderedDict`, as `state_dict` gives it"""

    def model(batch: Any) -> None:
        observe(batch["x"], batch["w"])

    return Setup(model, guide, every_step(lambda x, i: collections.OrderedDict(x=x, w=torch.tensor(1.0 + i))))


@program(CAPTURED)
def a_registered_parameter() -> Setup:
    """A parameter of the store as an argument"""
    weight = nn.Parameter(torch.tensor(1.0))

    def model(x: Tensor, weight: Tensor) -> None:
        pyro.param("weight", weight)
        observe(x, weight)

    return Setup(model, guide, [call(reals(5, seed=i), weight) for i in range(STEPS)], tensors=(weight,))


@program(CAPTURED)
def a_module_as_an_argument() -> Setup:
    """A network as an argument"""
    network = nn.Linear(1, 1)

    def model(x: Tensor, network: nn.Module) -> None:
        pyro.module("network", network)
        observe(x + network(x[:, None])[:, 0])

    return Setup(model, guide, [call(reals(5, seed=i), network) for i in range(STEPS)], modules=(network,))


@program(CAPTURED)
def a_function_as_an_argument() -> Setup:
    """An activation function as an argument"""
    batches = [call(reals(5, seed=i), torch.tanh if i % 2 else torch.sigmoid) for i in range(STEPS)]
    return Setup(lambda x, f: observe(x, f(x.mean())), guide, batches)


@program(CAPTURED)
def a_number_that_changes_now_and_then() -> Setup:
    """A Python number with three values"""
    return Setup(observe, guide, [call(reals(5, seed=i), 1.0 + i // 7) for i in range(STEPS)])


@program(CAPTURED)
def a_beta_that_grows() -> Setup:
    """A 0-dim tensor that grows at every step"""
    return Setup(observe, guide, [call(reals(5, seed=i), torch.tensor((1.0 + i) / STEPS)) for i in range(STEPS)])


@program(CAPTURED)
def one_tensor_twice() -> Setup:
    """One tensor as two arguments"""

    def model(x: Tensor, y: Tensor) -> None:
        observe(x, y.mean())

    return Setup(model, guide, [call(t, t) if i % 2 else call(t, t + 1) for i, ((t,), _) in enumerate(fresh(5))])


@program(CAPTURED)
def strings_and_flags() -> Setup:
    """Strings, flags, `None` and data types"""

    def model(x: Tensor, likelihood: str, dtype: torch.dtype, masked: bool, extra: None) -> None:
        family = {"normal": dist.Normal, "laplace": dist.Laplace}[likelihood]
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", family(z, 2.0 if masked else 1.0), obs=x.to(dtype))

    names = ["normal", "laplace"]
    batches = [call(reals(5, seed=i), names[i % 2], torch.float32, i % 4 > 1, extra=None) for i in range(STEPS)]
    return Setup(model, guide, batches)


@program(CAPTURED)
def an_argument_written() -> Setup:
    """An argument that the model writes to"""

    def model(x: Tensor, total: Tensor) -> None:
        total += x.detach().sum()
        observe(x, 1.0)

    total = torch.zeros(())
    return Setup(model, guide, [call(reals(5, seed=i), total) for i in range(STEPS)], tensors=(total,))


@program(LEFT, says="requires a gradient")
def an_argument_with_gradient() -> Setup:
    """An argument that asks for a gradient"""
    return Setup(observe, guide, [call(reals(5, seed=i).requires_grad_()) for i in range(STEPS)])


@program(LEFT, says="sparse")
def a_sparse_argument() -> Setup:
    """A sparse matrix"""

    def model(x: Tensor) -> None:
        observe(torch.sparse.sum(x, 1).to_dense())

    batches = [call(torch.relu(reals(5, 4, seed=i)).to_sparse()) for i in range(STEPS)]
    return Setup(model, guide, batches)
