"""Pyro's optimisers and ours, seen alike: state that goes back in, and learning rates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyro.optim import PyroOptim
from torch import Tensor

__all__ = ["get_state", "param_groups", "prepare", "scale_learning_rates", "set_state"]


def prepare(optim: Any, parameters: dict[str, Tensor]) -> None:
    """Let the optimiser take in every parameter now, and not at its first step, so that its options can be set."""
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
    """State of the optimiser, and of its schedulers, by the parameters' names."""
    if not _one_each(optim):
        return dict(optim.get_state())
    state = {}
    for name, parameter in parameters.items():
        if parameter in optim.optim_objs:
            torch_optim = optim.optim_objs[parameter]
            state[name] = {"optimizer": _innermost(torch_optim).state_dict()}
            if torch_optim is not _innermost(torch_optim):
                state[name]["scheduler"] = torch_optim.state_dict()
    return state


def set_state(optim: Any, state: dict[str, Any], parameters: dict[str, Tensor]) -> None:
    """Put ``get_state``'s state back. (``PyroOptim.set_state`` silently ignores parameters that it has seen.)"""
    if not _one_each(optim):
        optim.set_state(state)
        return
    prepare(optim, parameters)
    for name, parameter in parameters.items():
        torch_optim = optim.optim_objs[parameter]
        saved = state.get(name)
        if saved is None:
            # Not stepped yet when the state was taken: as new.
            optim.optim_objs[parameter] = optim._get_optim(parameter)
            continue
        own = saved if "param_groups" in saved else saved["optimizer"]
        _innermost(torch_optim).load_state_dict(own)
        if torch_optim is not _innermost(torch_optim):
            torch_optim.load_state_dict(saved["scheduler"])


def param_groups(optim: Any) -> Iterator[dict[str, Any]]:
    """The ``param_groups`` of every torch optimiser inside."""
    inner = optim.optim_objs.values() if _one_each(optim) else [optim]
    for torch_optim in inner:
        yield from _innermost(torch_optim).param_groups


def scale_learning_rates(optim: Any, factor: float) -> None:
    """Set every learning rate to ``factor`` times the one that its parameters began with."""
    for group in param_groups(optim):
        # The key under which torch's own schedulers keep it; it travels with the optimiser's state.
        rate = group.setdefault("initial_lr", float(group["lr"])) * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _one_each(optim: Any) -> bool:
    """Whether this is Pyro's own wrapper, with a torch optimiser for each parameter."""
    return isinstance(optim, PyroOptim) and type(optim).get_state is PyroOptim.get_state


def _innermost(torch_optim: Any) -> Any:
    """The optimiser itself, where it is wrapped in a learning-rate scheduler."""
    return getattr(torch_optim, "optimizer", torch_optim)
