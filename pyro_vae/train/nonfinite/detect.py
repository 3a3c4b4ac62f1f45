"""Notice a step that is not finite, before the optimizer sees its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["NotFinite", "before_update", "refuse_update", "require_finite_parameters"]


class NotFinite(Exception):
    """A loss, a gradient or a parameter is NaN or infinite.

    Args:
        message: what is not finite, and at which step.
        batch: number of the batch in its epoch, from 0, where the step was noticed only later.
        applied: whether an update, or a callback, has changed the parameters so; else it was prevented.
    """

    def __init__(self, message: str, batch: int | None = None, *, applied: bool = False) -> None:
        super().__init__(message)
        self.batch = batch
        self.applied = applied


@contextmanager
def before_update(svi: Any, action: Callable[[Any], Any]) -> Iterator[None]:
    """While entered, call ``action(loss)`` in every step after the gradients and before the optimizer.

    ``pyro.infer.SVI.step`` calls ``loss_and_grads`` and then the optimizer; this replaces ``loss_and_grads``. An
    exception in ``action`` therefore leaves the parameters as they were.

    Args:
        svi: a ``pyro.infer.SVI``; an object without ``loss_and_grads`` is left as it is.
        action: function of the loss; the gradients are in the parameters' ``grad``.
    """
    original = getattr(svi, "loss_and_grads", None)
    if original is None:
        yield
        return

    def loss_and_grads(*args: Any, **kwargs: Any) -> Any:
        loss = original(*args, **kwargs)
        action(loss)
        return loss

    loss_and_grads.__wrapped__ = original  # type: ignore[attr-defined]
    was_attribute = "loss_and_grads" in vars(svi)
    svi.loss_and_grads = loss_and_grads
    try:
        yield
    finally:
        if was_attribute:
            svi.loss_and_grads = original
        else:
            del svi.loss_and_grads


def refuse_update(loss: Any, parameters: Mapping[str, Tensor], where: str, batch: int) -> None:
    """Raise ``NotFinite`` where the loss or a gradient is not finite, and drop the gradients.

    Args:
        loss: the loss of a step.
        parameters: by name, with their gradients.
        where: the step, in words.
        batch: number of the batch in its epoch, from 0.
    """
    if not _is_finite(loss, (parameter.grad for parameter in parameters.values())):
        for parameter in parameters.values():
            parameter.grad = None
        raise NotFinite(f"the loss ({loss:.6g}) or a gradient is not finite at {where}", batch)


def require_finite_parameters(parameters: Mapping[str, Tensor], step: int) -> None:
    """Raise ``NotFinite`` where a parameter is not finite after ``step`` steps."""
    trained = {name: value.detach() for name, value in parameters.items() if value.requires_grad}
    if not _is_finite(0.0, trained.values()):
        names = [repr(name) for name, value in trained.items() if not _is_finite(0.0, [value])]
        raise NotFinite(f"after step {step}, not finite: parameter {', '.join(names)}", applied=True)


def _is_finite(loss: Any, tensors: Iterable[Tensor | None]) -> bool:
    """Return whether a loss (a number, a tensor or a tuple of them) and all elements of the tensors are finite."""
    losses = loss if isinstance(loss, tuple) else (loss,)
    if not all(math.isfinite(float(part.detach() if isinstance(part, Tensor) else part)) for part in losses):
        return False
    present = [tensor for tensor in tensors if tensor is not None]
    # A sum is finite only if every term is; it is cheaper than isfinite, and is read once for each device.
    totals: dict[torch.device, Tensor] = {}
    for tensor in present:
        total = tensor.sum()
        before = totals.get(tensor.device)
        totals[tensor.device] = total if before is None else before + total
    if all(math.isfinite(float(total)) for total in totals.values()):
        return True
    # Finite terms may have a sum that overflows.
    return all(bool(tensor.isfinite().all()) for tensor in present)
