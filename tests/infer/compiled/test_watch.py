"""What a step reads out of its arguments' sight, and what it leaves behind, is as with Pyro's SVI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceTailAdaptive_ELBO
from torch import Tensor

import pyro_vae as pv

X = torch.full((9,), 2.0)


def guide(x: Tensor, *args: Any) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.3))


def observe(x: Tensor, slope: Any) -> Tensor:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z * slope, 1.0), obs=x)
    return z


def graph_svi(model: Any, guide: Any, optim: Any, loss: Any) -> pv.CompiledSVI:
    return pv.CompiledSVI(model, guide, optim, loss, compile="graph")


def both_ways(run: Callable[[Any], Any]) -> tuple[Any, Any]:
    results = []
    for make in (SVI, graph_svi):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        results.append(run(make))
    return results[0], results[1]


class Slope:
    b = 1.0

    def model(self, x: Tensor) -> None:
        observe(x, self.b)


class ByGetattr(Slope):
    def model(self, x: Tensor) -> None:
        observe(x, getattr(self, "b"))  # noqa: B009 (that is what is tested)


class BySuper(Slope):
    def model(self, x: Tensor) -> None:
        super().model(x)


class ByAlias(Slope):
    def model(self, x: Tensor) -> None:
        me, y = self, x
        observe(y, me.b)


class InComprehension(Slope):
    def model(self, x: Tensor) -> None:
        this = self
        observe(x, sum([this.b for _ in range(1)]))


@pytest.mark.parametrize("kind", [Slope, ByGetattr, BySuper, ByAlias, InComprehension])
def test_an_attribute_that_changes_is_noticed_however_it_is_read(kind: type[Slope]) -> None:
    def run(make: Any) -> list[float]:
        story = kind()
        svi = make(story.model, guide, pv.Adam({"lr": 0.05}), Trace_ELBO())
        before = [svi.step(X) for _ in range(5)]
        story.b = -3.0
        return before + [svi.step(X) for _ in range(3)]

    want, got = both_ways(run)
    assert got == want


SCALE = {"b": 1.0}


def scaled(z: Tensor) -> Tensor:
    return z * SCALE["b"]


def test_what_a_function_among_the_arguments_reads_is_watched() -> None:
    def model(x: Tensor, function: Any) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(function(z), 1.0), obs=x)

    def run(make: Any) -> list[float]:
        SCALE["b"] = 1.0
        svi = make(model, guide, pv.Adam({"lr": 0.05}), Trace_ELBO())
        before = [svi.step(X, scaled) for _ in range(5)]
        SCALE["b"] = -3.0
        return before + [svi.step(X, scaled) for _ in range(3)]

    want, got = both_ways(run)
    assert got == want


@pytest.mark.filterwarnings("ignore::pyro_vae.CaptureWarning")
def test_what_a_model_keeps_is_kept_as_often_as_with_pyro() -> None:
    class Keeping:
        def __init__(self) -> None:
            self.all: list[Tensor] = []
            self.last: Tensor | None = None

        def model(self, x: Tensor) -> None:
            self.last = observe(x, 1.0).detach()
            self.all.append(self.last)

    def run(make: Any) -> tuple[int, float]:
        story = Keeping()
        svi = make(story.model, guide, pv.Adam({"lr": 0.01}), Trace_ELBO())
        for _ in range(12):
            svi.step(X)
        assert story.last is not None
        return len(story.all), story.last.item()

    want, got = both_ways(run)
    assert got == want == (12, want[1])


@pytest.mark.filterwarnings("ignore::pyro_vae.CaptureWarning")
def test_an_attribute_that_is_none_now_and_then_stays_an_attribute() -> None:
    class Alternating:
        def __init__(self) -> None:
            self.previous: Tensor | None = torch.tensor(1.0)

        def model(self, x: Tensor) -> None:
            self.previous = None if self.previous is not None else x.mean()
            observe(x, 1.0)

    svi = graph_svi(Alternating().model, guide, pv.Adam({"lr": 0.01}), Trace_ELBO())
    assert all(svi.step(X) > 0 for _ in range(4))


@pytest.mark.parametrize("optim", [lambda: pv.Adam({"lr": 0.05}), lambda: pyro.optim.Adam({"lr": 0.05})])
def test_an_objective_whose_loss_is_infinite_trains(optim: Any) -> None:
    def run(make: Any) -> float:
        loss = TraceTailAdaptive_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
        svi = make(lambda x: observe(x, 1.0), guide, optim(), loss)
        for _ in range(12):
            svi.step(X)
        return pyro.param("loc").item()

    want, got = both_ways(run)
    assert got == want
    assert got > 0.1


def test_gradients_set_to_none_between_steps_leave_momentum_as_with_pyro() -> None:
    def objective(model: Any, guide: Any, x: Tensor, which: int) -> Tensor:
        pyro.poutine.trace(guide).get_trace(x, which)
        return pyro.param("pq"[which]) ** 2

    def parameters(x: Tensor, which: int) -> None:
        pyro.param("p", torch.tensor(1.0))
        pyro.param("q", torch.tensor(1.0))

    def run(make: Any) -> list[float]:
        svi = make(lambda x, which: None, parameters, pv.Adam({"lr": 0.1}), objective)
        for i in range(6):
            svi.step(X, i % 2)
        for _, p in pyro.get_param_store().named_parameters():
            p.grad = None
        for which in (0, 1, 1):
            svi.step(X, which)
        return [pyro.param(name).item() for name in "pq"]

    want, got = both_ways(run)
    assert got == want


def test_nothing_trains_under_no_grad() -> None:
    def run(make: Any) -> float:
        svi = make(lambda x: observe(x, 1.0), guide, pyro.optim.SGD({"lr": 0.01}), Trace_ELBO())
        for _ in range(5):
            svi.step(X)
        with torch.no_grad():
            for _ in range(3):
                svi.step(X)
        return pyro.param("loc").item()

    want, got = both_ways(run)
    assert got == want
