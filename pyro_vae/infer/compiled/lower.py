"""A captured graph handed to inductor as it is, without the second trace that ``torch.compile`` would take of it.

``torch._inductor.compile`` expects a graph of unknown origin: it traces the graph again to look for aliases, once more
to take gradients out of it, and prepares a cache of its own, which together cost as much as inductor's real work. A
captured graph has its gradients already. One pass is left: in-place writes become new values, and operations that
inductor does not know are written out in those that it does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten

# On a GPU; inductor would compare uniform numbers, which gives the same draws on a CPU alone.
_SAME_DRAWS: dict[Any, Callable[..., Any]] = {
    aten.bernoulli.default: lambda p, *, generator=None: aten.bernoulli.Tensor(p, p, generator=generator)
}


def lowered(graph: fx.GraphModule, examples: list[Tensor], options: dict[str, Any]) -> Callable[..., Any]:
    """Return ``graph`` compiled by inductor.

    Args:
        graph: operations of ``aten``, with no gradient left to take; it is not changed.
        examples: fake tensors of one mode, like the graph's inputs.
        options: inductor's options.

    Raises:
        Exception: whatever inductor raises at what it cannot do.
    """
    from torch._inductor import compile_fx, config
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.virtualized import V

    cpp_wrapper = options.get("cpp_wrapper", False)
    options = {**(compile_fx.get_cpp_wrapper_config() if cpp_wrapper else {}), **options}
    with config.patch(options), V.set_fake_mode(examples[0].fake_mode):  # type: ignore[attr-defined]
        simple = functional(graph, examples, select_decomp_table() | ({} if cpp_wrapper else _SAME_DRAWS))
        last = next(iter(reversed(simple.graph.nodes)))
        last.meta["user_visible_output_idxs"] = range(len(last.args[0]))  # their strides are kept
        run = compile_fx.compile_fx_inner(simple, examples, cpp_wrapper=cpp_wrapper, is_inference=True)
    return lambda *tensors: run(list(tensors))


def functional(
    graph: fx.GraphModule, examples: list[Tensor], decompositions: dict[Any, Callable[..., Any]]
) -> fx.GraphModule:
    """Return the same computation without in-place writes, but for inputs, which get their new values at the end."""
    run = torch.func.functionalize(fx.Interpreter(graph).run, remove="mutations")
    simple = make_fx(run, decomposition_table=decompositions, tracing_mode="fake")(*examples)
    simple.graph.eliminate_dead_code()
    _write_last(simple.graph)
    _make_distinct(simple.graph)
    return simple


def _write_last(graph: fx.Graph) -> None:
    """Move writes to inputs to the end, as inductor takes for granted; what reads in between reads the new value.

    Raises:
        NotImplementedError: where this cannot be told from the graph alone, as when two inputs share memory.
    """
    inputs = list(graph.find_nodes(op="placeholder"))
    last = graph.output_node()
    order = {node: place for place, node in enumerate(graph.nodes)}
    for write in [node for node in graph.nodes if _schema(node) is not None and _schema(node).is_mutable]:
        target, value = write.args[:2] if write.target is aten.copy_.default else (write, None)
        if target.op != "placeholder":
            raise NotImplementedError(f"the graph writes to an intermediate result ({write.target})")
        memory = _memory(target)
        if sum(_memory(other) == memory for other in inputs) > 1:
            raise NotImplementedError(f"the graph writes to {target}, which shares memory with another input")
        old, new = target.meta["val"], value.meta["val"]  # type: ignore[union-attr]
        later = [user for user in target.users if order[user] > order[write]]
        differs = old.shape != new.shape or old.dtype != new.dtype
        if (later and differs) or any(map(_is_view, target.users)):
            raise NotImplementedError(f"the graph writes to {target} between reads of it")
        for user in later:
            if user.target is not aten.copy_.default or user.args[0] is not target:
                user.replace_input_with(target, value)
        last.prepend(write)


def _memory(node: fx.Node) -> int:
    return int(node.meta["val"].untyped_storage()._cdata)


def _is_view(node: fx.Node) -> bool:
    """Whether the result shares memory with an argument that it does not write to."""
    schema = _schema(node)
    return schema is not None and any(
        returned.alias_info is not None and not returned.alias_info.is_write for returned in schema.returns
    )


def _schema(node: fx.Node) -> Any:
    return getattr(node.target, "_schema", None)


def _make_distinct(graph: fx.Graph) -> None:
    """Copy what is returned twice, or returned as it came: inductor's program hands out each tensor once."""
    last = next(iter(reversed(graph.nodes)))
    seen: set[fx.Node] = set()
    outputs = []
    for node in last.args[0]:
        if isinstance(node, fx.Node) and (node in seen or node.op == "placeholder"):
            with graph.inserting_before(last):
                copy = graph.call_function(aten.clone.default, (node,))
            copy.meta["val"] = node.meta["val"]
            node = copy
        seen.add(node)
        outputs.append(node)
    last.args = (outputs,)
