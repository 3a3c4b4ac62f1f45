"""The parameters and modules of a model and a guide, be they methods, modules or plain functions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro.poutine as poutine
import torch
from pyro import validation_enabled
from pyro.poutine import Trace
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from .resume.generators import preserved

__all__ = [
    "Look",
    "copied",
    "copy_of_parameters",
    "evaluating",
    "look_at",
    "outside",
    "set_module",
    "set_parameters",
    "set_tensors",
]


class Look(NamedTuple):
    """What model and guide use."""

    parameters: dict[str, Tensor]  # unconstrained, by their names in Pyro's store
    modules: list[nn.Module]  # the outermost ones
    model_trace: Trace


def look_at(svi: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Look:
    """Run guide and model once, in eval mode and without moving a generator, and note what they use.

    After this every parameter exists, also one that Pyro makes at the first call (``pyro.param``, an ``AutoGuide``).

    Args:
        svi: anything with ``model`` and ``guide``.
        args: positional arguments of both, a batch.
        kwargs: keyword arguments of both.
    """
    owners = [getattr(function, "__self__", function) for function in (svi.model, svi.guide)]
    modes: dict[nn.Module, bool] = {}

    def to_eval(module: nn.Module, _: Any) -> None:
        # A hook finds every module that is called, also one that a plain function closes over.
        modes.setdefault(module, module.training)
        module.training = False

    with (
        _restoring_modes(modes),
        register_module_forward_pre_hook(to_eval),
        preserved(),
        torch.no_grad(),
        validation_enabled(False),  # if the batch is bad, the step's own error says more
        poutine.trace(param_only=True) as found,
    ):
        guide_trace = poutine.trace(svi.guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(svi.model, trace=guide_trace)).get_trace(*args, **kwargs)
    parameters = {name: site["value"].unconstrained() for name, site in found.trace.nodes.items()}
    used = list(dict.fromkeys([owner for owner in owners if isinstance(owner, nn.Module)] + list(modes)))
    inner = {part for module in used for part in module.modules() if part is not module}
    return Look(parameters, [module for module in used if module not in inner], model_trace)


def copy_of_parameters(parameters: dict[str, Tensor], modules: list[nn.Module]) -> dict[str, Any]:
    """Return a copy of each module's ``state_dict``, and of the parameters of no module by name."""
    return {
        "modules": [copied(module.state_dict()) for module in modules],
        "parameters": copied(outside(parameters, modules)),
    }


def set_parameters(state: dict[str, Any], parameters: dict[str, Tensor], modules: list[nn.Module]) -> None:
    """Write such a copy back, in place.

    Args:
        state: what ``copy_of_parameters`` returned for the same modules; it may lack parameters that were made later.
        parameters: all parameters by name.
        modules: the outermost modules.

    Raises:
        ValueError: the copy is of other parameters, shapes or dtypes; then nothing was written.
    """
    if len(state["modules"]) != len(modules):
        raise ValueError(
            f"resume: expected parameters of {len(modules)} modules, as this model and guide have, the checkpoint "
            f"holds {len(state['modules'])}. Resume with the model that wrote it."
        )
    for module, source in zip(modules, state["modules"], strict=True):
        _require_kinds(source, module.state_dict())
    targets = {name: value for name, value in outside(parameters, modules).items() if name in state["parameters"]}
    _require_kinds(state["parameters"], targets)
    for module, source in zip(modules, state["modules"], strict=True):
        set_module(module, source)
    set_tensors(state["parameters"], parameters)


def set_module(module: nn.Module, state: dict[str, Any]) -> None:
    """Write a module's parameters and buffers, in place.

    Raises:
        ValueError: they have other names, shapes or dtypes; then nothing was written.
    """
    _require_kinds(state, module.state_dict())
    module.load_state_dict(state)


def set_tensors(state: dict[str, Tensor], parameters: dict[str, Tensor]) -> None:
    """Write parameters by their names, in place."""
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(value)


def outside(parameters: dict[str, Tensor], modules: list[nn.Module]) -> dict[str, Tensor]:
    """Return the parameters that belong to no module."""
    inside = {id(parameter) for module in modules for parameter in module.parameters()}
    return {name: value for name, value in parameters.items() if id(value) not in inside}


def _require_kinds(source: dict[str, Any], target: dict[str, Any]) -> None:
    for name in [*target, *source]:
        kinds = [_kind(part.get(name)) for part in (target, source)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"resume: expected {name!r} {kinds[0]}, as this model and guide have it, the checkpoint holds it "
                f"{kinds[1]}. Resume with the model that wrote it."
            )


@contextmanager
def evaluating(modules: list[nn.Module]) -> Iterator[None]:
    """Put modules into eval mode, and afterwards each submodule back into its own mode."""
    with _restoring_modes({part: part.training for module in modules for part in module.modules()}):
        for module in modules:
            module.eval()
        yield


@contextmanager
def _restoring_modes(modes: dict[nn.Module, bool]) -> Iterator[None]:
    """Put each module back into the mode that ``modes`` holds at the end of the block."""
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def copied(value: Any) -> Any:
    """Copy tensors within dictionaries, lists and tuples, so that later steps do not change them."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(copied(item) for item in value)
    return value


def _kind(value: Any) -> str:
    return f"of shape {tuple(value.shape)} and {value.dtype}" if isinstance(value, Tensor) else "not as a tensor"
