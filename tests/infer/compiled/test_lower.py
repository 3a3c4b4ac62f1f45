"""What is handed to inductor computes what was captured, and writes to inputs at its end only."""

import itertools
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, fx
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.infer import Adam, CompiledSVI
from pyro_vae.infer.compiled import capture
from pyro_vae.infer.compiled.backend import compiled
from pyro_vae.infer.compiled.lower import functional
from pyro_vae.infer.compiled.toolchain import kept_on_disk
from tests.helpers.programs import PROGRAMS

aten = torch.ops.aten


def simplified(graph: fx.GraphModule, tensors: list[Tensor]) -> fx.GraphModule:
    with kept_on_disk(tensors) as examples, torch._inductor.config.patch(fallback_random=True):
        return functional(graph, examples, select_decomp_table())


def results(run: Any, tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """What a graph returns for copies of the tensors, and what it leaves in them."""
    copies = [t.detach().clone() for t in tensors]
    torch.manual_seed(3)
    with torch.no_grad():
        return list(run(*copies)), copies


def writes(graph: fx.GraphModule) -> list[fx.Node]:
    return [
        node for node in graph.graph.nodes if getattr(node.target, "_schema", None) and node.target._schema.is_mutable
    ]


QUICK = ("trace", "batch norm and dropout")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in PROGRAMS])
@pytest.mark.filterwarnings("ignore:.*was not registered in the param store:UserWarning")
def test_every_program_computes_the_same_without_writes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = PROGRAMS[name]
    found: list[tuple[fx.GraphModule, list[Tensor]]] = []

    def note(graph: fx.GraphModule, held: list[Tensor], inputs: list[Tensor], like: Any) -> fx.GraphModule:
        found.append((graph, [*held, *inputs]))
        return graph

    monkeypatch.setattr(capture, "compiled", note)
    svi = CompiledSVI(*program.make(), Adam({"lr": 1e-3}), program.loss(), check_steps=0, compile_after=1)
    for _ in range(2):
        svi.step(*program.args, **program.kwargs)
    [(graph, tensors)] = found
    for node in graph.graph.find_nodes(op="placeholder"):
        node.meta.pop("val", None)
    simple = simplified(graph, tensors)
    nodes = list(simple.graph.nodes)
    assert [node.args[0].op for node in writes(simple)] == ["placeholder"] * len(writes(simple))
    assert writes(simple) == nodes[len(nodes) - 1 - len(writes(simple)) : -1]
    for got, want in zip(results(simple, tensors), results(graph, tensors), strict=True):
        for a, b in zip(got, want, strict=True):
            assert a.dtype is b.dtype
            # float64 sums of float32 terms, added in another order: within float32's rounding
            tolerance = {"rtol": 1.3e-6, "atol": 1e-5} if a.dtype is torch.float64 else {}
            torch.testing.assert_close(a, b, equal_nan=True, **tolerance)
    pyro.clear_param_store()


def test_a_value_written_is_the_one_read_afterwards() -> None:
    def normalized(mean: Tensor, variance: Tensor, x: Tensor) -> list[Tensor]:
        out = aten.native_batch_norm(x, None, None, mean, variance, True, 0.5, 1e-5)[0]  # writes, and does not say so
        return [out, mean * 2]

    tensors = [torch.zeros(3), torch.ones(3), torch.randn(5, 3)]
    graph = make_fx(normalized)(*[t.clone() for t in tensors])
    simple = simplified(graph, tensors)
    assert len(writes(simple)) == 2
    for got, want in zip(results(simple, tensors), results(graph, tensors), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("shared", [False, True])
def test_inputs_that_share_memory_are_not_guessed_at(shared: bool) -> None:
    def written(mean: Tensor, other: Tensor, x: Tensor) -> list[Tensor]:
        mean.add_(x)
        return [other * 2]

    memory = torch.arange(6.0)
    tensors = [memory[:3], memory[2:5] if shared else torch.ones(3), torch.ones(3)]
    graph = make_fx(written)(*[t.clone() for t in tensors])
    if shared:
        with pytest.raises(NotImplementedError, match="shares memory"):
            simplified(graph, tensors)
    else:
        assert len(writes(simplified(graph, tensors))) == 1


@pytest.mark.slow
def test_outputs_that_are_inputs_or_views_or_equal_are_returned_as_uncompiled() -> None:
    def function(held: Tensor, x: Tensor) -> list[Tensor]:
        y = x * 2 + held
        held.mul_(3)
        return [y, y, x, held, y.t(), x[1:], y.expand(2, 3, 3), torch.zeros(())]

    tensors = [torch.randn(3, 3), torch.randn(3, 3)]
    graph = make_fx(function)(*[t.clone() for t in tensors])
    want = results(graph, tensors)
    run = compiled(graph, tensors[:1], tensors[1:])
    assert not isinstance(run, fx.GraphModule)
    for _ in range(2):
        for a, b in zip(itertools.chain(*results(run, tensors)), itertools.chain(*want), strict=True):
            assert a.stride() == b.stride()
            torch.testing.assert_close(a, b)
