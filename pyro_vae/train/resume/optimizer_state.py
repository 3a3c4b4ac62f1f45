"""State and learning rates of an optimizer, be it Pyro's or this library's."""

from __future__ import annotations

from typing import Any

from pyro.optim import PyroOptim
from torch import Tensor

from ...infer import FusedOptim
from ..parameters import copied

__all__ = ["get_state", "one_each", "prepare", "set_state", "torch_optimizers"]


def prepare(optim: Any, parameters: dict[str, Tensor]) -> None:
    """Register all parameters with the optimizer now, and not at its first step, so that it has their options."""
    if not one_each(optim):
        if hasattr(optim, "register"):
            optim.register(parameters.values())
        return
    for name, parameter in parameters.items():
        if parameter not in optim.optim_objs:
            optim.optim_objs[parameter] = optim._get_optim(parameter)
            optim.grad_clip[parameter] = optim._get_grad_clip(parameter)
            waiting = optim._state_waiting_to_be_consumed.pop(name, None)
            if waiting is not None:
                _set(optim, parameter, waiting)


def get_state(optim: Any, parameters: dict[str, Tensor]) -> dict[str, Any]:
    """Return a copy of the state of the optimizer and of its schedulers, by the parameters' names."""
    if not one_each(optim):
        is_copy = type(optim).get_state is FusedOptim.get_state
        return optim.get_state() if is_copy else copied(optim.get_state())
    state = {}
    for name, parameter in parameters.items():
        if parameter in optim.optim_objs:
            torch_optimizer = optim.optim_objs[parameter]
            state[name] = {"optimizer": _innermost(torch_optimizer).state_dict()}
            if torch_optimizer is not _innermost(torch_optimizer):
                state[name]["scheduler"] = torch_optimizer.state_dict()
    return copied({**optim._state_waiting_to_be_consumed, **state})


def set_state(optim: Any, state: dict[str, Any], parameters: dict[str, Tensor]) -> None:
    """Put ``get_state``'s state back. (``PyroOptim.set_state`` silently ignores parameters that it has seen.)"""
    if not one_each(optim):
        optim.set_state(state)
        return
    prepare(optim, parameters)
    optim._state_waiting_to_be_consumed = {name: own for name, own in state.items() if name not in parameters}
    for name, parameter in parameters.items():
        if name in state:
            _set(optim, parameter, state[name])
        else:  # the state was taken before this parameter's first step
            optim.optim_objs[parameter] = optim._get_optim(parameter)


def torch_optimizers(optim: Any) -> list[Any]:
    """Return the torch optimizers inside, or the learning-rate schedulers that wrap them."""
    return list(optim.optim_objs.values()) if one_each(optim) else [optim]


def one_each(optim: Any) -> bool:
    """Return whether this is Pyro's own class, which has a torch optimizer for each parameter."""
    return isinstance(optim, PyroOptim) and type(optim).get_state is PyroOptim.get_state


def _set(optim: Any, parameter: Tensor, state: dict[str, Any]) -> None:
    torch_optimizer = optim.optim_objs[parameter]
    _innermost(torch_optimizer).load_state_dict(state if "param_groups" in state else state["optimizer"])
    if torch_optimizer is not _innermost(torch_optimizer):
        torch_optimizer.load_state_dict(state["scheduler"])


def _innermost(torch_optimizer: Any) -> Any:
    """Return the torch optimizer, also where a learning-rate scheduler wraps it."""
    return getattr(torch_optimizer, "optimizer", torch_optimizer)
