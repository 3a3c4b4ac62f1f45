"""The audit: a captured step's loss and gradients against Pyro's own, on the same random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .captured_step import CapturedStep
from .losses import numbers, parts
from .program import Call
from .undo import undone

__all__ = ["audit", "audit_due", "difference", "message"]


def audit_due(call: int, every: int) -> bool:
    """Return whether a captured call is compared: calls 1, 2, 4, ... below ``every``, and each multiple of it.

    Args:
        call: number of the call, from 1.
        every: 0 for no comparison at all.
    """
    return every > 0 and (call % every == 0 or (call < every and call & (call - 1) == 0))


def audit(step: CapturedStep, call: Call) -> str | None:
    """Return what differs between a captured call and Pyro's on the same random numbers; None if nothing does.

    Both are undone.
    """
    params = step.traced.params
    with undone(params.values()):
        loss, now = call.evaluate()
        wanted = [numbers(part) for part in parts(loss)]
        names = {id(p): name for name, p in now.items()}
        wanted_grads = {names[id(p)]: p.grad.clone() for p in now.values() if p.grad is not None}

    def differs(run: Callable[..., Any], tolerance: float) -> str | None:
        out = step.outputs_undone(run, call.tensors)
        grads = {names.get(id(p), "a parameter"): g for p, g in zip(step.traced.trained, out.grads, strict=True)}
        return difference([numbers(part) for part in out.losses], wanted, grads, wanted_grads, tolerance)

    change = differs(step.run, 5e-2 if call.program.precision == "bf16" else 1e-3)
    if change is not None and step.run is not step.graph:
        # A rounding may have moved a discrete draw: the uncompiled graph rounds as Pyro does.
        change = differs(step.graph, 1e-2 if call.program.precision == "bf16" else 1e-4)
    if change is None:
        step.held_since = step.calls
    return change


def message(change: str, step: CapturedStep) -> str:
    """Return the error for what an audit found."""
    since = (
        f"The last comparison that held was at captured call {step.held_since}; steps taken since then may be wrong, "
        "and are not undone. "
        if step.calls > 1
        else ""
    )
    return (
        f"audit: captured call {step.calls} was compared with Pyro's on the same random numbers: {change}. {since}"
        "Model, guide or objective depends on something that the graph has frozen: what an object, a list, a "
        "dictionary, an array or a generator holds. Pass it as a tensor argument."
    )


def difference(
    losses: list[float],
    wanted_losses: list[float],
    grads: dict[str, Tensor],
    wanted_grads: dict[str, Tensor],
    tolerance: float,
) -> str | None:
    """Return what differs between a captured call and Pyro's, in words; None if both are the same up to rounding.

    Args:
        losses: of the graph.
        wanted_losses: Pyro's.
        grads: of the graph, by the parameters' names.
        wanted_grads: Pyro's.
        tolerance: largest relative difference; absolute for a gradient as far as it is small beside the others.
    """
    for got, want in zip(losses, wanted_losses, strict=True):
        if not _same(got, want, tolerance):
            return f"the loss is {got:.8g}, Pyro's is {want:.8g}"
    if grads.keys() != wanted_grads.keys():
        names = sorted(grads.keys() ^ wanted_grads.keys())
        return f"only one of both has a gradient for {_named(names)}"
    sizes = {name: float(g.norm()) for name, g in wanted_grads.items()}
    finite = [size for size in sizes.values() if math.isfinite(size)]
    floor = 1e-3 * tolerance * max(finite, default=0.0) + 1e-9
    errors = {
        name: float((grads[name] - want).norm()) for name, want in wanted_grads.items() if math.isfinite(sizes[name])
    }
    differing = [name for name, error in errors.items() if not error <= tolerance * sizes[name] + floor]
    if not differing:
        return None
    worst = max(errors[name] / max(sizes[name], 1e-30) for name in differing)
    return f"the gradient of {_named(differing)} differs from Pyro's by up to {worst:.2g} of its norm"


def _same(got: float, want: float, tolerance: float) -> bool:
    if math.isfinite(want):
        return abs(got - want) <= tolerance * (1 + abs(want))
    return not math.isfinite(got)


def _named(names: list[Any]) -> str:
    return ", ".join(map(repr, names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
