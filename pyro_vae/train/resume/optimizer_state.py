"""State and learning rates of an optimizer, be it Pyro's or this library's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyro.optim import PyroOptim
from torch import Tensor

__all__ = ["get_state", "multiply_learning_rates", "param_groups", "prepare", "scale_learning_rates", "set_state"]


def prepare(optim: Any, parameters: dict[str, Tensor]) -> None:
    """Register all parameters with the optimizer now, and not at its first step, so that it has their options."""
    if not _one_each(optim):
        if hasattr(optim, "register"):
            optim.register(parameters.values())
        return
    for name, parameter in parameters.items():
        if parameter not in optim.optim_objs:
            optim.optim_objs[parameter] = optim._get_optim(parameter)
            optim.grad_clip[parameter] = optim._get_grad_clip(parameter)
            waiting = optim._state_waiting_to_be_consumed.pop(name, None)
            if waiting is not None:
                set_state(optim, {name: waiting}, {name: parameter})


def get_state(optim: Any, parameters: dict[str, Tensor]) -> dict[str, Any]:
    """Return the state of the optimizer and of its schedulers, by the parameters' names."""
    if not _one_each(optim):
        return dict(optim.get_state())
    state = {}
    for name, parameter in parameters.items():
        if parameter in optim.optim_objs:
            torch_optimizer = optim.optim_objs[parameter]
            state[name] = {"optimizer": _innermost(torch_optimizer).state_dict()}
            if torch_optimizer is not _innermost(torch_optimizer):
                state[name]["scheduler"] = torch_optimizer.state_dict()
    return state


def set_state(optim: Any, state: dict[str, Any], parameters: dict[str, Tensor]) -> None:
    """Put ``get_state``'s state back. (``PyroOptim.set_state`` silently ignores parameters that it has seen.)"""
    if not _one_each(optim):
        optim.set_state(state)
        return
    prepare(optim, parameters)
    for name, parameter in parameters.items():
        torch_optimizer = optim.optim_objs[parameter]
        saved = state.get(name)
        if saved is None:
            # The state was taken before this parameter's first step.
            optim.optim_objs[parameter] = optim._get_optim(parameter)
            continue
        own = saved if "param_groups" in saved else saved["optimizer"]
        _innermost(torch_optimizer).load_state_dict(own)
        if torch_optimizer is not _innermost(torch_optimizer):
            torch_optimizer.load_state_dict(saved["scheduler"])


def param_groups(optim: Any) -> Iterator[dict[str, Any]]:
    """Iterate over the ``param_groups`` of all torch optimizers inside."""
    inner = optim.optim_objs.values() if _one_each(optim) else [optim]
    for torch_optimizer in inner:
        yield from _innermost(torch_optimizer).param_groups


def scale_learning_rates(optim: Any, factor: float) -> None:
    """Set every learning rate to ``factor`` times the one that its parameters began with."""
    for group in param_groups(optim):
        # torch's schedulers use the same key. It is part of the optimizer's state.
        rate = group.setdefault("initial_lr", float(group["lr"])) * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def multiply_learning_rates(optim: Any, factor: float) -> None:
    """Multiply the current learning rates by a factor."""
    for group in param_groups(optim):
        group["lr"] *= factor


def _one_each(optim: Any) -> bool:
    """Return whether this is Pyro's own class, which has a torch optimizer for each parameter."""
    return isinstance(optim, PyroOptim) and type(optim).get_state is PyroOptim.get_state


def _innermost(torch_optimizer: Any) -> Any:
    """Return the torch optimizer, also where a learning-rate scheduler wraps it."""
    return getattr(torch_optimizer, "optimizer", torch_optimizer)
