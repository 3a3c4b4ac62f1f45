"""Between the gradients and the optimiser: the one place where a step can still be looked at, changed or refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["NotFinite", "all_finite", "before_update"]


class NotFinite(Exception):
    """A loss or a gradient is NaN or infinite; its update was not applied.

    Args:
        message: what, and at which step.
        batch: number of the batch in its epoch, from 0, if it was found later than in its own step.
    """

    def __init__(self, message: str, batch: int | None = None) -> None:
        super().__init__(message)
        self.batch = batch


@contextmanager
def before_update(svi: Any, action: Callable[[Any], Any]) -> Iterator[None]:
    """While entered, call ``action(loss)`` in every step between its gradients and the optimiser.

    Pyro's ``SVI.step`` is ``loss_and_grads``, then the optimiser; this wraps the first. What ``action`` raises leaves
    the weights as they were. Several nest; the one entered last acts last.

    Args:
        svi: a ``pyro.infer.SVI``. Left alone are an object without ``loss_and_grads``, and a ``CompiledSVI``, whose
            graph refuses an update that is not finite by itself (and whose ``backward`` is the place to act on
            gradients).
        action: what to do; the gradients are in the parameters' ``grad``.
    """
    original = getattr(svi, "loss_and_grads", None)
    if original is None or hasattr(svi, "update"):
        yield
        return

    def loss_and_grads(*args: Any, **keywords: Any) -> Any:
        loss = original(*args, **keywords)
        action(loss)
        return loss

    loss_and_grads.__wrapped__ = original  # type: ignore[attr-defined]
    own = "loss_and_grads" in vars(svi)
    svi.loss_and_grads = loss_and_grads
    try:
        yield
    finally:
        if own:
            svi.loss_and_grads = original
        else:
            del svi.loss_and_grads


def all_finite(loss: Any, parameters: dict[str, Tensor]) -> bool:
    """Whether the loss (a number, a tensor, or several) and every gradient are finite."""
    losses = loss if isinstance(loss, tuple) else (loss,)
    if not all(math.isfinite(float(part.detach() if isinstance(part, Tensor) else part)) for part in losses):
        return False
    gradients = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
    # A sum is finite only if every term is, costs a fraction of a look at each, and is read once a device.
    totals: dict[torch.device, Tensor] = {}
    for gradient in gradients:
        total = gradient.sum()
        before = totals.get(gradient.device)
        totals[gradient.device] = total if before is None else before + total
    if all(math.isfinite(float(total)) for total in totals.values()):
        return True
    # Finite terms may still have overflowed in the sum.
    return all(bool(gradient.isfinite().all()) for gradient in gradients)
