"""How matrix products are computed: in which precision, and by whom."""

from __future__ import annotations

import contextlib
import functools
import math
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

# What oneDNN must have to do, and along each side, to be worth its call.
_MULTIPLY_ADDS, _SIDE = 10**6, 64


def share_casts(graph: fx.GraphModule) -> fx.GraphModule:
    """Cast each tensor to bfloat16 once, though products take it as it is and transposed."""
    cast: dict[fx.Node, fx.Node] = {}
    for node in list(graph.graph.nodes):
        if node.target is not aten._to_copy.default or node.kwargs != {"dtype": torch.bfloat16}:
            continue
        source, transposed = behind_views(node.args[0])
        if source not in cast:
            with graph.graph.inserting_after(source):
                cast[source] = graph.graph.call_function(aten._to_copy.default, (source,), dict(node.kwargs))
            cast[source].meta["val"] = source.meta["val"].bfloat16()
        new = cast[source]
        if transposed:
            with graph.graph.inserting_before(node):
                new = graph.graph.call_function(aten.t.default, (new,))
            new.meta["val"] = cast[source].meta["val"].t()
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def behind_views(node: Any) -> tuple[Any, bool]:
    """Return the node that this one shows, and whether it does so transposed."""
    transposed = False
    while node.target in (aten.t.default, aten.detach.default, aten.alias.default):
        transposed ^= node.target is aten.t.default
        node = node.args[0]
    return node, transposed


def choose_products(graph: fx.GraphModule) -> fx.GraphModule:
    """Give each large float32 product on the CPU to oneDNN, and leave small ones to ``aten::mm``.

    ``aten::mm`` goes to BLAS (MKL, OpenBLAS), which on AMD's processors takes up to twice oneDNN's time for a large
    product and less for a small one. On Intel's, MKL takes no more time than oneDNN, and two thirds where a factor is
    transposed: there nothing changes, and neither where PyTorch has no oneDNN. The rule asks for shapes alone: a
    choice by the clock would make a resumed run another one in the last bits.
    """
    linear = None if _mkl_on_intel() else onednn_linear()
    if linear is None:
        return graph
    for node in list(graph.graph.nodes):
        if not is_large_product(node):
            continue
        with graph.graph.inserting_before(node):
            new = graph.graph.call_function(linear, (*node.args[-2:], None, "none"))
            new.meta["val"] = node.meta.get("val")
            if node.target is aten.addmm.default:  # the bias is added by whatever comes next, fused with it
                new = graph.graph.call_function(aten.add.Tensor, (new, node.args[0]))
                new.meta["val"] = node.meta.get("val")
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)
    graph.recompile()
    return graph


def is_large_product(node: fx.Node) -> bool:
    """Whether it is a float32 matrix product on the CPU, with or without a bias, that is worth a call of oneDNN."""
    if node.target not in (aten.mm.default, aten.addmm.default) or node.kwargs:
        return False
    factors = [argument.meta.get("val") for argument in node.args[-2:]]  # type: ignore[union-attr]
    tensors = [t for t in factors if isinstance(t, Tensor) and t.dtype is torch.float32 and t.device.type == "cpu"]
    if len(tensors) < 2:
        return False
    sides = (*tensors[0].shape, tensors[1].shape[1])
    return min(sides) >= _SIDE and math.prod(sides) >= _MULTIPLY_ADDS


@functools.cache
def _mkl_on_intel() -> bool:
    """Whether products go to MKL on a processor of Intel's."""
    names = [platform.processor()]
    with contextlib.suppress(OSError):  # Linux names the vendor here alone
        names.append(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0])
    return torch.backends.mkl.is_available() and any("GenuineIntel" in name for name in names)


@functools.cache
def onednn_linear() -> Any:
    """``activation(a @ b + bias)`` by oneDNN as an operator for graphs, or None; made at first need, not at import."""
    pointwise = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
    if pointwise is None:
        return None

    def linear(a: Tensor, b: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        out: Tensor = pointwise(a, b.t(), bias, activation, [], "")
        return out

    try:  # the operator is private to torch: see that it still does what it did
        probe, bias = torch.arange(12.0).reshape(3, 4), torch.arange(3.0)
        if not torch.equal(linear(probe, probe.t(), bias, "none"), probe @ probe.t() + bias):
            return None
        library = torch.library.Library("pyro_vae", "FRAGMENT")
        library.define("onednn_linear(Tensor a, Tensor b, Tensor? bias, str activation) -> Tensor")
        library.impl("onednn_linear", linear, "CPU")
        torch.library.register_fake(
            "pyro_vae::onednn_linear",
            lambda a, b, bias, activation: a.new_empty(a.shape[0], b.shape[1]),
            lib=library,
        )
    except (RuntimeError, TypeError, NotImplementedError, AttributeError):
        return None
    _libraries.append(library)  # an operator lives as long as its library object
    return torch.ops.pyro_vae.onednn_linear.default


_libraries: list[Any] = []


def cheapen_checks(graph: fx.GraphModule) -> fx.GraphModule:
    """Read a weight's gradient for :func:`all_finite` off the two factors of its product, where those are smaller.

    No entry of ``a @ b`` exceeds ``sum|a| * sum|b|``, so where that is finite the product is: for a small batch two
    short sums in place of one over every weight.
    """
    for node in list(graph.graph.nodes):
        if node.target is not aten.sum.default or node.args[0].target is not aten.abs.default:
            continue
        product, _ = behind_views(node.args[0].args[0])
        if product.target is aten._to_copy.default:  # a cast keeps finite what is
            product, _ = behind_views(product.args[0])
        if product.target is not aten.mm.default:
            continue
        sizes = [n.meta["val"].numel() for n in (*product.args, product)]
        if sizes[0] + sizes[1] >= sizes[2]:
            continue
        dtype = node.meta["val"].dtype
        with graph.graph.inserting_before(node):
            sums = [
                graph.graph.call_function(
                    aten.sum.default, (graph.graph.call_function(aten.abs.default, (factor,)),), {"dtype": dtype}
                )
                for factor in product.args
            ]
            bound = graph.graph.call_function(aten.mul.Tensor, tuple(sums))
        node.replace_all_uses_with(bound)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph
