"""Batch normalization, whose operator writes running statistics without saying so."""

from __future__ import annotations

import torch
from torch import fx

from .errors import CaptureError

__all__ = ["require_used_statistics"]

_STATISTICS = (torch.ops.aten.native_batch_norm, torch.ops.aten.cudnn_batch_norm)


def require_used_statistics(graph: fx.GraphModule) -> None:
    """Refuse a layer that is called for its running statistics alone: without its result it would leave the graph."""
    writing = [n for n in graph.graph.nodes if getattr(n.target, "overloadpacket", None) in _STATISTICS]
    if writing:
        graph.graph.eliminate_dead_code(is_impure_node=lambda n: n.is_impure() or n in writing)
        if any(not node.users for node in writing):
            raise CaptureError(
                "a batch normalization is called for its running statistics, and nothing uses its result; a graph "
                "would leave it out. Use the result, or update the statistics outside the step."
            )
