"""The learning rates of an optimizer and of its schedulers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from .optimizer_state import torch_optimizers

__all__ = [
    "multiply_learning_rates",
    "param_groups",
    "plans_of",
    "require_long_enough",
    "schedulers",
    "set_learning_rates",
    "set_plans",
]

# Where torch's optimizers and schedulers keep learning rates: each is a number, or a list with one for each group.
_OF_A_GROUP = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
_OF_A_SCHEDULER = ("base_lrs", "_last_lr", "max_lrs", "min_lrs", "default_min_lr", "eta_min")
# Where torch's schedulers keep for how many steps they are made.
_LENGTHS = ("total_steps", "_schedule_phases", "T_max", "total_iters", "step_size", "milestones", "_milestones")


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


def plans_of(optim: Any) -> list[tuple[Any, dict[str, Any]]]:
    """Return each scheduler with the lengths that it was made with."""
    return [
        (scheduler, {name: getattr(scheduler, name) for name in _LENGTHS if hasattr(scheduler, name)})
        for scheduler in schedulers(optim)
    ]


def set_plans(plans: list[tuple[Any, dict[str, Any]]]) -> None:
    """Set the lengths that ``plans_of`` returned."""
    for scheduler, lengths in plans:
        for name, length in lengths.items():
            setattr(scheduler, name, length)


def require_long_enough(optim: Any, steps: int) -> None:
    """Refuse a one-cycle schedule that ends before the run does, which torch says only when it has ended.

    Args:
        optim: the optimizer. Of interest is a scheduler that it steps by itself, after each step.
        steps: number of steps that the run still has.
    """
    for scheduler in _nested(getattr(optim, "scheduler", None)):
        total = getattr(scheduler, "total_steps", None)
        if total is not None and scheduler.last_epoch + steps > total:
            raise ValueError(
                f"epochs: expected at most the {total} steps that {type(scheduler).__name__} was made for, got "
                f"{scheduler.last_epoch + steps}. Give it total_steps={scheduler.last_epoch + steps}, or lower epochs."
            )


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
