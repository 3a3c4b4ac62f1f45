"""A sum of Bernoulli log-densities with one logarithm for many terms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

# A product of so many factors between 1 and 2 is far from float32's largest number, 2^128.
_FACTORS = 64
_VECTOR = 8  # what is left of a datum is a multiple of the processor's vectors


def share_logarithms(graph: fx.GraphModule) -> fx.GraphModule:
    r"""Compute sums of Bernoulli log-densities, given logits, with one logarithm for many terms.

    .. math:: \sum_i \log p(x_i \mid l_i) =
        \sum_i (x_i l_i - \max(l_i, 0)) - \sum_j \log \prod_{i \in j} (1 + e^{-|l_i|})

    where the groups :math:`j` divide the terms. Every factor is between 1 and 2, so that a product of 64 cannot
    overflow, and its rounding error is that of the sum of as many logarithms. A logarithm costs more than all other
    operations of a term.

    Args:
        graph: a captured graph; sums of ``binary_cross_entropy_with_logits`` over a datum's last dimension are replaced
            where it divides into groups.

    Returns:
        The same graph, changed.
    """
    for node in list(graph.graph.find_nodes(op="call_function", target=aten.sum.dim_IntList)):
        found = _bernoulli_terms(node)
        if found is None:
            continue
        logits, values, shape = found
        size = _factors(shape[-1])
        if size is None:
            continue
        with graph.graph.inserting_before(node):

            def call(target: Any, *args: Any) -> fx.Node:
                return graph.graph.call_function(target, args)

            linear = call(aten.sub.Tensor, call(aten.mul.Tensor, values, logits), call(aten.relu.default, logits))
            # Both sums go over the same groups, so that the compiler makes one loop of them, which reads a term once.
            groups = [*shape[:-1], size, -1]
            linear = call(aten.sum.dim_IntList, call(aten.view.default, linear, groups), [-2])
            factors = call(aten.exp.default, call(aten.neg.default, call(aten.abs.default, logits)))
            factors = call(aten.view.default, call(aten.add.Tensor, factors, 1.0), groups)
            logarithms = call(aten.log.default, call(aten.prod.dim_int, factors, -2))
            new = call(aten.sum.dim_IntList, call(aten.sub.Tensor, linear, logarithms), [-1])
        new.meta["val"] = node.meta.get("val")
        node.replace_all_uses_with(new)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _bernoulli_terms(node: fx.Node) -> tuple[fx.Node, fx.Node, list[int]] | None:
    """Logits, values and the shape of ``sum(view(-binary_cross_entropy_with_logits(logits, values)), -1)``."""
    if list(node.args[1:2]) != [[-1]] or len(node.args) > 2 or node.kwargs:
        return None
    source: Any = node.args[0]
    shape = source.meta.get("val").shape if isinstance(source.meta.get("val"), Tensor) else None
    while source.target is aten.view.default:
        source = source.args[0]
    if source.target is not aten.neg.default or shape is None:
        return None
    loss = source.args[0]
    if loss.target is not aten.binary_cross_entropy_with_logits.default or loss.args[2:] != (None, None, 0):
        return None
    logits, values = loss.args[:2]
    if logits.meta["val"].dtype is not torch.float32 and logits.meta["val"].dtype is not torch.float64:
        return None
    return logits, values, list(shape)


def _factors(terms: int) -> int | None:
    """The largest group that divides the terms and leaves a multiple of the vector's length, or None."""
    sizes = [n for n in range(2, _FACTORS + 1) if terms % n == 0 and terms // n % _VECTOR == 0]
    return max(sizes, default=None)
