"""What a run trains: the parameters and modules of a model and a guide, be they methods, modules or plain functions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro.poutine as poutine
import torch
from pyro import validation_enabled
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from .generators import preserved

__all__ = ["copied", "evaluating", "parts_of", "weights_from", "weights_of"]


def parts_of(svi: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[dict[str, Tensor], list[nn.Module]]:
    """Run guide and model once, in eval mode and without moving a generator, and note what they use.

    After this every parameter exists, also those that Pyro makes at the first call (``pyro.param``, an ``AutoGuide``).

    Args:
        svi: anything with ``model`` and ``guide``.
        args: positional arguments of both, a batch.
        keywords: keyword arguments of both.

    Returns:
        The parameters (unconstrained, by their name in Pyro's store) and the outermost modules.
    """
    owners = [getattr(function, "__self__", function) for function in (svi.model, svi.guide)]
    modes: dict[nn.Module, bool] = {}

    def to_eval(module: nn.Module, _: Any) -> None:
        # Found when it is called, so that modules that a plain function closes over are found as well.
        modes.setdefault(module, module.training)
        module.training = False

    with (
        _modes_given_back(modes),
        register_module_forward_pre_hook(to_eval),
        preserved(),
        torch.no_grad(),
        validation_enabled(False),  # what is wrong with the batch is said by the step itself, which knows more of it
        poutine.trace(param_only=True) as capture,
    ):
        guide_trace = poutine.trace(svi.guide).get_trace(*args, **keywords)
        poutine.replay(svi.model, trace=guide_trace)(*args, **keywords)
    parameters = {name: site["value"].unconstrained() for name, site in capture.trace.nodes.items()}
    used = list(dict.fromkeys([owner for owner in owners if isinstance(owner, nn.Module)] + list(modes)))
    inner = {part for module in used for part in module.modules() if part is not module}
    return parameters, [module for module in used if module not in inner]


def weights_of(parameters: dict[str, Tensor], modules: list[nn.Module]) -> dict[str, Any]:
    """A copy of all that a fit has learned: each module's ``state_dict``, and the parameters of no module by name."""
    inside = {id(parameter) for module in modules for parameter in module.parameters()}
    return {
        "modules": [copied(module.state_dict()) for module in modules],
        "parameters": copied({name: value for name, value in parameters.items() if id(value) not in inside}),
    }


def weights_from(weights: dict[str, Any], parameters: dict[str, Tensor], modules: list[nn.Module]) -> None:
    """Write such a copy back, in place.

    Raises:
        ValueError: the copy is of other parameters, or of other shapes; then nothing was written.
    """
    inside = {id(parameter) for module in modules for parameter in module.parameters()}
    targets = [module.state_dict() for module in modules]
    targets.append({name: value for name, value in parameters.items() if id(value) not in inside})
    sources = [*weights["modules"], weights["parameters"]]
    if len(sources) != len(targets):
        raise ValueError(
            f"resume: expected weights of {len(targets) - 1} modules, as this model and guide have, the checkpoint "
            f"holds {len(sources) - 1}. Resume with the model that wrote it."
        )
    for source, target in zip(sources, targets, strict=True):
        for name in [*target, *source]:
            shapes = [tuple(part[name].shape) if _is_tensor(part, name) else "none" for part in (target, source)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"resume: expected {name!r} of shape {shapes[0]}, as this model and guide have it, the checkpoint "
                    f"holds {shapes[1]}. Resume with the model that wrote it."
                )
    with torch.no_grad():
        for module, source in zip(modules, sources, strict=False):
            module.load_state_dict(source)
        for name, value in sources[-1].items():
            parameters[name].copy_(value)


@contextmanager
def evaluating(modules: list[nn.Module]) -> Iterator[None]:
    """Modules in eval mode, then each submodule back in its own."""
    with _modes_given_back({part: part.training for module in modules for part in module.modules()}):
        for module in modules:
            module.eval()
        yield


@contextmanager
def _modes_given_back(modes: dict[nn.Module, bool]) -> Iterator[None]:
    """At the end each module in the mode noted, also of those that are noted meanwhile."""
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def copied(value: Any) -> Any:
    """Nothing shared with ``value``: modules and optimisers hand out the tensors that they go on to change."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(copied(item) for item in value)
    return value


def _is_tensor(state: dict[str, Any], name: str) -> bool:
    return isinstance(state.get(name), Tensor)
