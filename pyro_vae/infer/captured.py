"""One captured graph, ready to run on new inputs."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_vae.infer.folded import FoldedAdam
from pyro_vae.infer.snapshot import Snapshot


class Captured:
    """A graph with the tensors that it holds and the update that belongs to it."""

    def __init__(
        self,
        kind: str,
        run: Callable[..., Any],
        held: list[Tensor],
        snapshot: Snapshot,
        optim: PyroOptim,
        seen: dict[str, Any],
    ) -> None:
        self.kind = kind
        self.snapshot = snapshot
        self._run = run
        self._held = [t.detach() for t in held]
        self._optim = optim
        self._update: FoldedAdam | None = seen["update"]
        self._trained: list[Tensor] = seen["trained"]
        self._params: list[Tensor] = list(seen["params"].values())
        self._tuple = seen["tuple"]

    def __call__(self, tensors: list[Tensor]) -> Any:
        if self._update is not None:
            self._update.refresh()
        with torch.no_grad():
            out = self._run(*self._held, *tensors)
        count = len(out) - (0 if self.kind == "loss" or self._update is not None else len(self._trained))
        losses = list(out[:count])
        loss = self._tuple(losses) if self._tuple is not None else losses[0]
        if self.kind == "loss":
            return loss
        if self._update is not None:
            self._optim.step_scheduler()
            return loss
        for p, grad in zip(self._trained, out[count:], strict=True):
            p.grad = grad
        if self.kind == "backward":
            return loss, self._params
        if all(bool(torch.isfinite(part)) for part in losses):
            self._optim(set(self._params))
        for p in self._trained:
            p.grad = None
        return loss
