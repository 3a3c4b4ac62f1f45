"""One captured graph, ready to run on new inputs, and the update that belongs to it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import _disable_current_modes

from ..optim import FusedOptim
from ..update import all_finite, step_or_skip
from .gradients import Gradients
from .guarded_adam import GuardedAdam
from .undo import undone, writes_to
from .watch import Watch

__all__ = ["CapturedStep", "Outputs", "Traced"]


class Traced(NamedTuple):
    """What one run of model, guide and objective did: the graph returns losses, then gradients, then three flags."""

    params: dict[str, Tensor]
    trained: list[Tensor]  # those with a gradient
    loss_type: type[tuple[Any, ...]] | None  # None for a single loss
    losses: int
    bound: bool  # whether the losses say something (see ``is_a_bound``)


class Outputs(NamedTuple):
    """What a run of the graph gives."""

    losses: list[Tensor]
    grads: list[Tensor]
    flags: list[Tensor]


class CapturedStep:
    """A graph, the tensors that it holds, and the update of the parameters.

    Args:
        kind: ``"step"``, ``"backward"`` or ``"loss"``.
        graph: takes ``held`` and then the inputs; runs uncompiled.
        held: tensors that model, guide and objective close over.
        watch: what the graph depends on besides its inputs.
        optim: updates the parameters after a ``"step"``.
        traced: what the graph returns.
        gradients: what Pyro would leave in ``.grad`` of the parameters.
    """

    def __init__(
        self,
        kind: Any,
        graph: fx.GraphModule,
        held: list[Tensor],
        watch: Watch,
        optim: Any,
        traced: Traced,
        gradients: Gradients,
    ) -> None:
        self.kind = kind
        self.watch = watch
        self.traced = traced
        self.may_fail = any(node.target is torch.ops.aten._linalg_check_errors.default for node in graph.graph.nodes)
        self.calls = 0
        self.held_since = 0  # the last call whose comparison with Pyro held
        self.graph: Callable[..., Any] = graph.forward  # not the module itself, whose hooks are the program's
        self.run: Callable[..., Any] = graph.forward  # compiled, once it is
        # From inputs to ``run``; None once it is made, or where nothing is to be compiled.
        self.compiler: Callable[[list[Tensor]], Callable[..., Any]] | None = None
        self._held = [t.detach() for t in held]
        self._written = _written(graph)
        self._optim = optim
        self._params = list(traced.params.values())
        self._gradients = gradients
        trained = {id(p) for p in traced.trained}
        self._others = [p for p in self._params if id(p) not in trained]
        self._adam: GuardedAdam | None = None
        self._momentum_only: list[Tensor] = []
        self._grads: list[Tensor | None] = [None] * len(self._params)  # what stood in .grad at the last look
        self._versions: list[int] = []

    def outputs(self, run: Callable[..., Any], tensors: list[Tensor]) -> Outputs:
        """Run the graph, as ``self.graph`` or ``self.run``, on new inputs."""
        losses, grads = self.traced.losses, self.traced.losses + len(self.traced.trained)
        with torch.no_grad():
            out = list(run(*self._held, *tensors))
        return Outputs(out[:losses], out[losses:grads], out[grads:])

    def adds_to_gradients(self) -> bool:
        """Whether somebody put gradients there since, which Pyro's step would add to."""
        grads = [p.grad for p in self._params]
        same = all(map(operator.is_, grads, self._grads))
        if same and [g._version for g in grads if g is not None] == self._versions:
            return False
        if self._gradients.foreign(self._params):
            return True
        self._gradients.start(self.traced.trained)
        self._grads = [p.grad for p in self._params]
        self._versions = [g._version for g in self._grads if g is not None]
        # A parameter that had a gradient in another call has zeros now, and its momentum goes on, as in Pyro.
        self._momentum_only = [p for p in self._others if p.grad is not None]
        self._adam = None
        return False

    def outputs_undone(self, run: Callable[..., Any], tensors: list[Tensor]) -> Outputs:
        """The same, and leave buffers and random numbers as they were."""
        # A compiled graph's writes pass unseen by `undone`. So must their undoing: another `undone` around this one
        # would take what it finds written for the state before.
        written = [t for t, writes in zip([*self._held, *tensors], self._written, strict=True) if writes]
        before = [t.untyped_storage().clone() for t in written]
        with undone(self._params):  # which undoes what is written to the outputs, too
            out = Outputs(*([t.clone() for t in part] for part in self.outputs(run, tensors)))
        with torch.no_grad(), _disable_current_modes():
            for t, value in zip(written, before, strict=True):
                t.untyped_storage().copy_(value)  # which leaves the tensor's version as it is
        return out

    def __call__(self, tensors: list[Tensor]) -> Any:
        """Run the graph and do with its gradients what the call is for."""
        out = self.outputs(self.run, tensors)
        loss = self.traced.loss_type(out.losses) if self.traced.loss_type is not None else out.losses[0]
        if self.kind == "loss":
            return loss
        if self.kind == "step" and self._adam_applies():
            assert self._adam is not None
            self._adam(out.grads + self._gradients.zeros(self._momentum_only), *out.flags)
            self._optim.step_scheduler()
            return loss
        for p, grad in zip(self.traced.trained, out.grads, strict=True):
            p.grad = grad
        if self.kind == "backward":
            self._gradients.reset(self._others)
            return loss, self._params
        # A loss that says something is NaN where a gradient is not finite.
        finite = all_finite(out.losses, []) if self.traced.bound else all_finite([], out.grads)
        step_or_skip(self._optim, self._params, bool(finite))
        self._gradients.reset(self._params)
        return loss

    def _adam_applies(self) -> bool:
        """Whether the fused update may be used, made anew where the optimizer or what has momentum has changed."""
        optim = self._optim
        if not isinstance(optim, FusedOptim) or type(optim).__call__ is not FusedOptim.__call__:
            return False
        if self._adam is None or not self._adam.holds():
            self._optim.register(self._params)
            members = self.traced.trained + self._momentum_only
            self._adam = GuardedAdam(self._optim, members) if GuardedAdam.fits(self._optim, members) else None
        return self._adam is not None


def _written(graph: fx.GraphModule) -> list[bool]:
    """Which of its inputs a graph writes to."""
    written: set[fx.Node] = set()
    for node in graph.graph.nodes:
        for argument in writes_to(node.target, node.args, node.kwargs) if node.op == "call_function" else ():
            while isinstance(argument, fx.Node) and _shares_memory(argument):  # a view of an input
                argument = argument.args[0]
            written.add(argument)
    return [node in written for node in graph.graph.find_nodes(op="placeholder")]


def _shares_memory(node: fx.Node) -> bool:
    """Whether an operation gives its first argument, or a view of it."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)
