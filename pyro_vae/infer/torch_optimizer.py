"""The torch optimizer inside: made fused where it can be, and its state as plain values."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["is_average", "make_fused", "options_for", "plain_state", "require_options"]

_PLAIN = (bool, int, float, str, type(None), Tensor)


def make_fused(make: Any, groups: list[dict[str, Any]]) -> Optimizer:
    """Return the torch optimizer, fused where its class and these options allow it."""
    chosen = {"fused", "foreach", "capturable", "differentiable"} & set(groups[0])
    if "fused" in inspect.signature(make).parameters and not chosen:
        try:
            return make(groups, fused=True)
        except (RuntimeError, ValueError):  # this device or dtype has no fused kernel
            pass
    return make(groups)


def is_average(p: Tensor) -> bool:
    """Return whether this is Pyro's decaying average of a cost: in the store, but a new tensor after each step."""
    name = pyro.get_param_store().param_name(p)
    return name is not None and name.startswith("__baseline_avg_downstream_cost_")


def options_for(make: Any, options: dict[str, Any], p: Tensor) -> dict[str, Any]:
    """Return the options of one parameter: torch's fused kernels take real numbers only, and say so at a step."""
    takes_fused = "fused" in inspect.signature(make).parameters
    return {**options, "fused": False} if takes_fused and not p.is_floating_point() else options


def plain_state(value: Any) -> Any:
    """Return ``value`` without what ``torch.load(weights_only=True)`` refuses, such as a scheduler's functions."""
    if type(value) is dict:
        return {k: plain_state(v) for k, v in value.items() if _is_plain(v)}
    if type(value) in (list, tuple):
        return type(value)(plain_state(v) for v in value)
    return value.detach().clone() if isinstance(value, Tensor) else value


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(_is_plain(v) for v in value)
    return type(value) is dict or isinstance(value, _PLAIN)


def require_options(optimizer_class: Callable[..., Optimizer], options: dict[str, Any]) -> None:
    """Refuse options that the torch optimizer does not take."""
    try:
        optimizer_class([torch.zeros(1, requires_grad=True)], **options)
    except (TypeError, ValueError, RuntimeError) as error:
        name = getattr(optimizer_class, "__name__", repr(optimizer_class))
        raise type(error)(
            f"optim_args: expected options of {name}, such as {{'lr': 1e-3}}, got {options} ({error})."
        ) from error
