"""A linear layer and its activation in one call of oneDNN."""

from __future__ import annotations

import torch
from torch import fx

from ..infer.compiled.passes import is_large_product, onednn_linear

aten = torch.ops.aten

_ACTIVATIONS = {
    aten.silu.default: "swish",
    aten.relu.default: "relu",
    aten.tanh.default: "tanh",
    aten.sigmoid.default: "sigmoid",
}


def fuse_activations(graph: fx.GraphModule) -> fx.GraphModule:
    """Compute large layers on the CPU as ``activation(x @ w + b)`` in one call of oneDNN.

    ``aten::addmm`` copies the bias to every row before it multiplies, and an activation of its own reads and writes the
    whole result once more. Training cannot have this, since gradients need the activation's input.

    Args:
        graph: a captured graph without gradients.

    Returns:
        The same graph, changed; as it is where PyTorch has no oneDNN.
    """
    linear = onednn_linear()
    if linear is None:
        return graph
    for node in list(graph.graph.find_nodes(op="call_function", target=aten.addmm.default)):
        bias = node.args[0].meta.get("val")
        if not is_large_product(node) or bias is None or bias.ndim != 1:
            continue
        last = node
        while len(last.users) == 1 and next(iter(last.users)).target is aten.view.default:
            last = next(iter(last.users))
        users = [user for user in last.users if len(last.users) == 1 and user.target in _ACTIVATIONS]
        activation = _ACTIVATIONS[users[0].target] if users else "none"
        with graph.graph.inserting_before(node):
            new = graph.graph.call_function(linear, (*node.args[1:], node.args[0], activation))
        new.meta["val"] = node.meta.get("val")
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)
        for user in users:
            user.replace_all_uses_with(user.args[0])
            graph.graph.erase_node(user)
    graph.recompile()
    return graph
