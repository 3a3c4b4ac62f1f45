"""Shapes that depend on data, and shapes that only look so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

from .runner import CAPTURED, LEFT, STEPS, Setup, call, fresh, program, ragged, reals


def guide(*args: Any, **kwargs: Any) -> None:
    """q(z) = N(loc, scale) for one latent variable."""
    scale = pyro.param("scale", torch.tensor(0.3), constraint=constraints.positive)
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), scale))


def reading(statistic: Callable[[Tensor], Any]) -> Setup:
    """z ~ N(0, 1), x_n ~ N(z + statistic(x), 1), other data at every step."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z + statistic(x), 1.0), obs=x)

    return Setup(model, guide, fresh(6))


@program(LEFT, says="x[x > 0]")
def a_boolean_index() -> Setup:
    """`x[x > 0]`"""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        positive = x[x > 0]
        with pyro.plate("data", len(positive)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=positive)

    return Setup(model, guide, fresh(6))


@program(LEFT, says="x[x > 0].sum()")
def a_boolean_index_that_is_summed() -> Setup:
    """`x[x > 0].sum()`, whose result has a fixed shape"""
    return reading(lambda x: x[x > 0].sum())


@program(LEFT, says="y[seen]")
def a_mask_as_an_argument() -> Setup:
    """`y[seen]` with a mask among the arguments (missing data)"""

    def model(y: Tensor, seen: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", int(seen.shape[0])):
            pyro.factor("y", -((y[seen].mean() - z) ** 2))

    return Setup(model, guide, [call(reals(6, seed=i), reals(6, seed=i + 1) > -1) for i in range(STEPS)])


@program(LEFT, says="x[x > 0] = 0.5 * x[x > 0]")
def a_boolean_index_written() -> Setup:
    """`x[x > 0] = tensor` (of data-dependent length)"""

    def statistic(x: Tensor) -> Tensor:
        x = x.clone()
        x[x > 0] = 0.5 * x[x > 0]
        return x.mean()

    return reading(statistic)


@program(CAPTURED)
def a_boolean_index_filled() -> Setup:
    """`x[x > 0] = number`"""

    def statistic(x: Tensor) -> Tensor:
        x = x.clone()
        x[x > 0] = 0.5
        return x.mean()

    return reading(statistic)


@program(LEFT, says="nonzero")
def nonzero() -> Setup:
    """`torch.nonzero`"""
    return reading(lambda x: torch.nonzero(x > 0).float().mean())


@program(LEFT, says="torch.where(x > 0)")
def where_of_one_argument() -> Setup:
    """`torch.where` of one argument"""
    return reading(lambda x: x[torch.where(x > 0)].sum())


@program(LEFT, says="unique")
def unique() -> Setup:
    """`torch.unique`"""
    return reading(lambda x: torch.unique((x > 0).long()).float().sum())


@program(LEFT, says="bincount")
def bincount() -> Setup:
    """`torch.bincount`"""
    return reading(lambda x: torch.bincount((x.abs() * 2).long()).float().std())


@program(LEFT, says="repeat_interleave")
def repeats_of_a_tensor() -> Setup:
    """`repeat_interleave` with a tensor of repeats"""
    return reading(lambda x: x.repeat_interleave((x > 0).long() + 1).sum())


@program(CAPTURED)
def repeats_of_a_stated_size() -> Setup:
    """`repeat_interleave` with a tensor of repeats and an output size"""

    def statistic(x: Tensor) -> Tensor:
        repeats = torch.tensor([1, 2, 3, 1, 2, 3])
        return torch.repeat_interleave(x, repeats, output_size=12).mean()

    return reading(statistic)


@program(CAPTURED)
def repeats_of_a_number() -> Setup:
    """`repeat_interleave` with a number"""
    return reading(lambda x: x.repeat_interleave(2).std())


@program(LEFT, says="x[x > 0].shape[0]")
def a_number_of_selected_data() -> Setup:
    """`x[x > 0].shape[0]`"""
    return reading(lambda x: 0.1 * x[x > 0].shape[0])


@program(LEFT, says="masked_select")
def masked_select() -> Setup:
    """`torch.masked_select`"""
    return reading(lambda x: torch.masked_select(x, x > 0).sum())


@program(LEFT, says="num_classes")
def one_hot_of_unknown_width() -> Setup:
    """`F.one_hot` without `num_classes`"""
    return reading(lambda x: F.one_hot((x > 0).long() + (x > 1).long()).float().sum(0)[-1])


@program(LEFT, says="one_hot")
def one_hot_of_known_width() -> Setup:
    """`F.one_hot` with `num_classes`"""
    return reading(lambda x: F.one_hot((x > 0).long(), num_classes=2).float().sum(0)[-1])


@program(LEFT, says="x[: int(")
def a_length_read_from_data() -> Setup:
    """`x[: int(n)]`"""
    return reading(lambda x: x[: int((x > 0).sum()) + 1].mean())


@program(LEFT, says="split")
def a_split_by_data() -> Setup:
    """`torch.split` by sizes that data give"""
    return reading(lambda x: x.split([int((x > 0).sum()), int((x <= 0).sum())])[0].sum())


@program(CAPTURED, compiled=True)
def torch_where() -> Setup:
    """`torch.where` of three arguments"""
    return reading(lambda x: torch.where(x > 0, x, 0.0).sum())


@program(CAPTURED)
def sorting_and_ranking() -> Setup:
    """`sort`, `topk`, `argmax`, `cumsum`, `searchsorted`"""

    def statistic(x: Tensor) -> Tensor:
        ordered, index = x.sort()
        place = torch.searchsorted(ordered, torch.tensor(0.0))
        return (
            x.topk(2).values.sum() + index.flip(0)[0] + x.argmax() + x.cumsum(0).gather(0, place.clamp(max=5)[None])[0]
        )

    return reading(statistic)


@program(LEFT, says="x[x.argmax()]")
def an_index_of_no_dimensions() -> Setup:
    """`x[i]` with a 0-dim tensor, which Python reads"""
    return reading(lambda x: x[x.argmax()])


@program(CAPTURED)
def gathered_by_labels() -> Setup:
    """Means by group: `scatter_add`, `index_add`, `gather`"""

    def model(x: Tensor, group: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        sums = torch.zeros(3).scatter_add(0, group, x)
        counts = torch.zeros(3).index_add(0, group, torch.ones(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z + (sums / counts.clamp(min=1))[group], 1.0), obs=x)

    batches = [call(reals(6, seed=i), torch.arange(6).roll(i) % 3) for i in range(STEPS)]
    return Setup(model, guide, batches)


@program(CAPTURED)
def many_batch_shapes() -> Setup:
    """Four batch shapes in turn"""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate_stack("data", x.shape):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    shapes = [(5,), (3,), (4, 2), (2, 3, 2)]
    return Setup(model, guide, [call(reals(*shapes[i % 4], seed=i)) for i in range(STEPS)])


@program(CAPTURED)
def views_and_strides() -> Setup:
    """Transposed, sliced and expanded arguments"""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate_stack("data", x.shape):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    forms = [
        lambda x: x.t(),
        lambda x: x[::2],
        lambda x: x[:, :1].expand(4, 3),
        lambda x: x.contiguous(),
    ]
    return Setup(model, guide, [call(forms[i % 4](reals(4, 3, seed=i))) for i in range(STEPS)])


@program(CAPTURED)
def types_of_numbers() -> Setup:
    """float64, int64, bool and uint8 batches in turn"""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.to(torch.float32))

    types = [torch.float64, torch.int64, torch.bool, torch.uint8]
    return Setup(model, guide, [call((reals(5, seed=i).abs() * 2).to(types[i % 4])) for i in range(STEPS)])


@program(CAPTURED)
def complex_numbers() -> Setup:
    """A spectrum: complex numbers by `torch.fft`"""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        phase = pyro.param("phase", torch.zeros(4))
        wave = torch.fft.irfft(torch.polar(torch.ones(4), phase), n=6)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z + wave, 1.0), obs=x)

    return Setup(model, guide, fresh(6))


@contextmanager
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@program(CAPTURED, around=double_precision)
def float64_by_default() -> Setup:
    """float64 as the default"""
    setup = reading(lambda x: x.mean())
    return setup._replace(batches=ragged(6))


@program(CAPTURED)
def mixed_precision() -> Setup:
    """float64 parameters over float32 data"""

    def model(x: Tensor) -> None:
        shift = pyro.param("shift", torch.tensor(0.0, dtype=torch.float64))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)

    return Setup(model, guide, fresh(6))
