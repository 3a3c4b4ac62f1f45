"""One pass of model and guide over a chunk of data as a captured graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ..infer.compiled.backend import compiled
from ..infer.compiled.dependencies import calls_of, dependencies_of
from ..infer.compiled.errors import CaptureError
from ..infer.compiled.passes import choose_products, share_casts
from ..infer.compiled.trace import traced_graph
from ..infer.compiled.undo import undone
from .bernoulli_sums import share_logarithms
from .linear_layers import fuse_activations

logger = logging.getLogger(__name__)
aten = torch.ops.aten

Pass = Callable[[list[Tensor]], Tensor]  # the tensors of a chunk -> log-weights (K, B)


def captured_pass(
    by_pyro: Pass,
    functions: tuple[Callable[..., Any], ...],
    example: list[Tensor],
    other: list[Tensor],
    *,
    compile: bool,
    tolerance: float,
) -> Pass | None:
    """``by_pyro`` as one graph of tensor operations, for chunks shaped like ``example``; None where none stands for it.

    The graph is compared once with Pyro, on another chunk and the same random numbers: a graph cannot see what a run
    changes in Python, and freezes the sizes of what a boolean index selects.

    Args:
        by_pyro: log-weights of a chunk as Pyro computes them.
        functions: the model and the guide, whose Python state the graph depends on.
        example: the chunk that is captured.
        other: a chunk of the same shape to compare on.
        compile: whether the graph is compiled.
        tolerance: what a log-weight may differ by, relative to the largest.
    """
    with undone(example), calls_of() as modules:
        by_pyro([t[:2] if t.ndim else t for t in example])  # parameters that are made at first use are there now
    try:
        state = dependencies_of(functions, modules)
        try:
            graph, held = traced_graph(lambda *tensors: [by_pyro(list(tensors))], example, example)
            change = state.change()
        finally:
            state.restore()
        if change is not None:
            raise CaptureError(f"running model and guide changes what they depend on: {change}")
        graph = share_casts(choose_products(fuse_activations(share_logarithms(graph))))
        held = _cast_once(graph, [t.detach() for t in held])
        run = compiled(graph, held, example) if compile else graph
        _compare(lambda tensors: run(*held, *tensors)[0], by_pyro, other, tolerance)
    except Exception as error:  # an error of the user's own, Pyro's passes raise again
        logger.info("evaluated by Pyro, not by a captured graph: %s: %s", type(error).__name__, error)
        return None
    return lambda tensors: run(*held, *tensors)[0]


def _cast_once(graph: fx.GraphModule, held: list[Tensor]) -> list[Tensor]:
    """Cast parameters to bfloat16 before all passes: the graph takes what it casts as it is, behind ``held``."""
    placeholders = graph.graph.find_nodes(op="placeholder")
    values = dict(zip(placeholders, held, strict=False))
    casts = [n for n in graph.graph.nodes if n.target is aten._to_copy.default and n.args[0] in values]
    for cast in casts:
        if any(user.target is not aten._to_copy.default for user in cast.args[0].users):
            continue  # something else takes it, and might write to it
        held.append(aten._to_copy.default(values[cast.args[0]], **cast.kwargs))
        with graph.graph.inserting_before(placeholders[len(values)]):
            new = graph.graph.placeholder(f"cast{len(held)}")
        new.meta["val"] = held[-1]
        cast.replace_all_uses_with(new)
        graph.graph.erase_node(cast)
    graph.recompile()
    return held


def _compare(run: Pass, by_pyro: Pass, chunk: list[Tensor], tolerance: float) -> None:
    """Raise ``CaptureError`` unless both give the same log-weights; a hundredth may differ.

    A discrete latent variable may take another value where its probability differs by a rounding error.
    """
    results = []
    for function in (run, by_pyro):
        with undone(chunk):
            results.append(function(chunk).clone())
    ours, pyros = results
    finite = pyros.isfinite()
    error = (ours - pyros).abs().where(finite, (ours != pyros).to(pyros))
    largest = pyros.abs().where(finite, 0.0).max()
    differ = ~(error <= tolerance * (1 + largest))  # NaN is no agreement
    if differ.to(pyros).mean() > 0.01:
        raise CaptureError(f"its log-weights differ from Pyro's by up to {error.max():.3g} nats")
