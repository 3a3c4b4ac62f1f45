"""One captured graph, ready to run on new inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.optim import PyroOptim
from torch import Tensor

from ..update import update
from .dependencies import Snapshot
from .guarded_adam import GuardedAdam


class Traced(NamedTuple):
    """What the run under the tracer met; the graph returns losses, then gradients, then what ``adam`` asks for."""

    params: dict[str, Tensor]
    trained: list[Tensor]  # those with a gradient
    loss_type: type[tuple[Any, ...]] | None  # None for a single loss
    losses: int
    adam: GuardedAdam | None


class Captured:
    """A graph with the tensors that it holds and the update that belongs to it."""

    def __init__(
        self,
        kind: str,
        run: Callable[..., Any],
        held: list[Tensor],
        snapshot: Snapshot,
        optim: PyroOptim,
        traced: Traced,
    ) -> None:
        self.kind = kind
        self.snapshot = snapshot
        self._run = run
        self._held = [t.detach() for t in held]
        self._optim = optim
        self._traced = traced
        self._params = list(traced.params.values())

    def __call__(self, tensors: list[Tensor]) -> Any:
        traced = self._traced
        with torch.no_grad():
            out = list(self._run(*self._held, *tensors))
            losses = out[: traced.losses]
            loss = traced.loss_type(losses) if traced.loss_type is not None else losses[0]
            if self.kind == "loss":
                return loss
            grads = out[traced.losses : traced.losses + len(traced.trained)]
            if traced.adam is not None:
                traced.adam(grads, *out[traced.losses + len(grads) :])
                traced.adam.optim.step_scheduler()
                return loss
        for p, grad in zip(traced.trained, grads, strict=True):
            p.grad = grad
        if self.kind == "backward":
            return loss, self._params
        update(self._optim, losses, self._params)
        return loss
