"""A graph is compiled at a call that is counted: not in a short run, not for a rare batch, and after a resume alike."""

import copy
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, fx

from pyro_vae.infer import Adam, CaptureWarning, CompiledSVI
from pyro_vae.infer.compiled import backend, capture
from tests.helpers.programs import SmallVAE, binary


@pytest.fixture
def compiled_for(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes of graphs that were compiled; their programs differ from the graphs by a rounding."""
    sizes: list[int] = []

    def compiled(graph: fx.GraphModule, held: list[Tensor], inputs: list[Tensor], like: Any) -> Callable[..., Any]:
        sizes.append(len(inputs[0]))
        return lambda *tensors: [t * (1 + 1e-6) if t.dim() else t for t in graph(*tensors)]  # gradients, not flags

    monkeypatch.setattr(capture, "compiled", compiled)
    return sizes


def new_svi(**options: Any) -> CompiledSVI:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    vae = SmallVAE()
    return CompiledSVI(vae.model, vae.guide, Adam({"lr": 0.01}), Trace_ELBO(), **{"compile_after": 10, **options})


def test_a_graph_is_compiled_at_a_counted_call_and_a_rare_one_is_not(compiled_for: list[int]) -> None:
    svi = new_svi()
    for call in range(10):
        svi.step(binary(5))
        if call % 4 == 3:
            svi.step(binary(3))
    assert compiled_for == []  # the first call was Pyro's, so nine were the graph's
    svi.step(binary(5))
    assert compiled_for == [5]
    for _ in range(20):
        svi.step(binary(5))
    assert compiled_for == [5]


@pytest.mark.parametrize("stop", [10, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 5, 11, 15))])
def test_a_resumed_run_compiles_at_the_same_call(compiled_for: list[int], stop: int) -> None:
    def run(svi: CompiledSVI, calls: range) -> list[float]:
        losses = []
        for call in calls:
            pyro.set_rng_seed(call)
            losses.append(svi.step(binary(5)))
        return losses

    svi = new_svi()
    want = run(svi, range(20))
    svi = new_svi()
    got = run(svi, range(stop))
    values = [p.detach().clone() for p in svi.model.__self__.parameters()]
    optimizer, calls = copy.deepcopy(svi.optim.get_state()), svi.state_dict()
    svi = new_svi()
    svi.evaluate_loss(binary(5))  # which registers its parameters
    with torch.no_grad():
        for p, value in zip(svi.model.__self__.parameters(), values, strict=True):
            p.copy_(value)
    svi.optim.set_state(optimizer)
    svi.load_state_dict(calls)
    assert got + run(svi, range(stop, 20)) == want


def test_a_program_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(svi: CompiledSVI) -> list[float]:
        pyro.set_rng_seed(1)
        return [svi.step(binary(5)) for _ in range(8)]

    want = run(new_svi(compile="graph"))
    monkeypatch.setattr(
        capture,
        "compiled",
        lambda graph, *rest: lambda *tensors: [t if i else 2 * t for i, t in enumerate(graph(*tensors))],
    )
    svi = new_svi(compile_after=4)
    with pytest.warns(CaptureWarning, match="does not compute what was captured") as seen:
        got = run(svi)
    assert len(seen) == 1
    assert got == pytest.approx(want, rel=1e-6)


def test_a_graph_of_too_many_operations_runs_as_captured_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_said", set())
    monkeypatch.setattr(backend, "MOST_OPERATIONS", 20)
    svi = new_svi(compile_after=1)
    with pytest.warns(UserWarning, match="operations and runs uncompiled") as seen:
        [svi.step(binary(n)) for n in (5, 5, 5, 4, 4, 4)]
    assert len(seen) == 1
