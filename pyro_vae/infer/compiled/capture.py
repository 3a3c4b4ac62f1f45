"""From a call of a program to a captured step."""

from __future__ import annotations

import copy
import logging
import time

import torch
from torch import Tensor

from ..call_key import flatten, with_tensors
from ..update import all_finite
from .backend import compiled
from .captured_step import CapturedStep, Traced
from .errors import CaptureError
from .gradients import Gradients
from .guarded_adam import flags
from .losses import as_tensors, is_a_bound, marked, parts
from .passes import cheapen_checks, choose_products, share_casts
from .program import Call, Program
from .trace import traced_graph
from .watch import Watch, has_hooks

__all__ = ["captured_step"]

logger = logging.getLogger(__name__)


def captured_step(call: Call, *, before: Watch, gradients: Gradients, compile: bool) -> CapturedStep:
    """Run a call once more under the tracer, undone, and return its graph, with the update.

    Args:
        call: the call.
        before: a watch over what Pyro's run of such a call read.
        gradients: what stands in ``.grad`` between steps.
        compile: whether the graph is to be compiled once it has been called often.

    Raises:
        CaptureError: no graph can stand for this call.
    """
    started = time.perf_counter()
    program, kind, args, kwargs, tensors, _ = call
    _refuse(program, tensors, before.params)
    found: list[Traced] = []

    def function(*inputs: Tensor) -> list[Tensor]:
        new_args, new_kwargs = with_tensors((args, kwargs), list(inputs))
        given = flatten((new_args, new_kwargs), [])
        loss, params = program.evaluate(kind, new_args, new_kwargs)
        if flatten((new_args, new_kwargs), []) != given:
            raise CaptureError(
                "model, guide or objective changes its arguments (a list or a dictionary among them); a graph would "
                "not. Copy them before."
            )
        loss_type = type(loss) if isinstance(loss, tuple) else None
        losses = parts(as_tensors(loss, params))
        distinct = {id(p): p for p in params.values()}.values()  # one tensor may have two names
        trained = [p for p in distinct if p.grad is not None] if kind != "loss" else []
        grads = [p.grad for p in trained if p.grad is not None]
        extra: list[Tensor] = []
        if kind == "step":
            with torch.no_grad():
                ok = all_finite(losses if is_a_bound(program.loss) else [], grads)
                losses = [marked(part, ok) for part in losses]
                extra = flags(program.optim, grads, ok)
        found.append(Traced(params, trained, loss_type, len(losses), is_a_bound(program.loss)))
        return losses + grads + extra

    leaves = before.leaves()
    gradients_before = [leaf.grad for leaf in leaves]
    try:
        graph, held = traced_graph(function, tensors, before.params.values())
        change = before.change() or before.writes()
    finally:
        before.restore()
        for leaf, gradient in zip(leaves, gradients_before, strict=True):
            leaf.grad = gradient
    traced = found[-1]
    _require_same_params(traced.params, before.params)
    if change is not None:
        raise CaptureError(
            f"running model and guide changes state that they may depend on ({change}); a graph would freeze it. "
            "Pass it as a tensor argument."
        )
    own = {id(p) for p in before.params.values()}
    if kind != "loss" and any(t.requires_grad and t.is_leaf and id(t) not in own for t in held):
        raise CaptureError(
            "model or guide uses a tensor that requires a gradient and is no parameter of Pyro's store, in whose .grad "
            "Pyro leaves one; a graph would not. Register its module with pyro_vae.module, or detach it."
        )
    before.tensors({f"a closed-over tensor ({i})": t for i, t in enumerate(held) if id(t) not in own})
    step = CapturedStep(kind, graph, held, before, program.optim, traced, gradients)
    if compile:
        share_casts(cheapen_checks(graph))
        like = {traced.losses + i: p.detach() for i, p in enumerate(traced.trained)}
        step.compiler = lambda inputs: compiled(choose_products(copy.deepcopy(graph)), held, inputs, like)
    logger.info(
        "captured %s for inputs %s: %d operations, traced in %.2f s",
        kind,
        [tuple(t.shape) for t in tensors],
        len(graph.graph.nodes),
        time.perf_counter() - started,
    )
    return step


def _refuse(program: Program, tensors: list[Tensor], params: dict[str, Tensor]) -> None:
    objective = type(getattr(program.loss_and_grads, "__self__", None)).__name__
    if objective.startswith("Jit"):
        raise CaptureError(f"{objective} compiles by torch.jit. Use {objective.removeprefix('Jit')}, without it.")
    hooked = next((name for name, p in params.items() if has_hooks(p)), None)
    if hooked is not None:
        raise CaptureError(f"parameter {hooked!r} has a gradient hook, which a graph would not call.")
    if any(t.requires_grad for t in tensors):
        raise CaptureError(
            "an argument requires a gradient, and a graph gives gradients to parameters only. Detach it, or let model "
            "and guide close over it."
        )


def _require_same_params(params: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    for name, p in params.items():
        if p is not before.get(name, p):
            raise RuntimeError(
                f"parameter {name!r} of Pyro's store belongs to another module of the same name, so that Pyro would "
                "train that one. Give the modules different names in pyro_vae.module."
            )
    if params.keys() != before.keys():
        raise CaptureError(
            f"the parameters differ from run to run: {sorted(params.keys() ^ before.keys())}; a graph has one "
            "structure."
        )
