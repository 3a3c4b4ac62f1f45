"""The learning rates of an optimizer and of its schedulers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from .optimizer_state import torch_optimizers

__all__ = ["multiply_learning_rates", "param_groups", "schedulers", "set_learning_rates"]

# Where torch's optimizers and schedulers keep learning rates: each is a number, or a list with one for each group.
_OF_A_GROUP = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
_OF_A_SCHEDULER = ("base_lrs", "_last_lr", "max_lrs", "min_lrs", "default_min_lr", "eta_min")


def param_groups(optim: Any) -> Iterator[dict[str, Any]]:
    """Iterate over the ``param_groups`` of all torch optimizers inside."""
    for item in torch_optimizers(optim):
        yield from getattr(item, "optimizer", item).param_groups


def schedulers(optim: Any) -> Iterator[Any]:
    """Iterate over all torch schedulers: Pyro's optimizers are wrapped in them, and this library's hold one."""
    for item in torch_optimizers(optim):
        if item is optim:
            yield from _nested(getattr(optim, "scheduler", None))
        elif hasattr(item, "optimizer"):
            yield from _nested(item)


def set_learning_rates(optim: Any, factor: float) -> None:
    """Set each learning rate to ``factor`` times the one that it began with."""
    for group in param_groups(optim):
        # torch's schedulers use the same key. It is part of the optimizer's state.
        _set(group, "lr", group.setdefault("initial_lr", float(group["lr"])) * factor)


def multiply_learning_rates(optim: Any, factor: float) -> None:
    """Multiply all learning rates by a factor, those that schedulers are to set in later steps included."""
    for group in param_groups(optim):
        for name in _OF_A_GROUP:
            if name in group:
                _set(group, name, group[name] * factor)
    for scheduler in schedulers(optim):
        for name in _OF_A_SCHEDULER:
            rates = getattr(scheduler, name, None)
            if isinstance(rates, list):
                setattr(scheduler, name, [rate * factor for rate in rates])
            elif rates is not None:
                setattr(scheduler, name, rates * factor)


def _nested(scheduler: Any) -> Iterator[Any]:
    if scheduler is not None:
        yield scheduler
        for inner in getattr(scheduler, "_schedulers", ()):  # of SequentialLR and ChainedScheduler
            yield from _nested(inner)


def _set(group: dict[str, Any], name: str, rate: Any) -> None:
    """In place where the rate is a tensor, which a captured graph may hold."""
    if isinstance(group[name], Tensor):
        group[name].fill_(rate)
    else:
        group[name] = rate
