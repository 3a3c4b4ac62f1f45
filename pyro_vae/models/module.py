"""``pyro.module`` for several instances under one name."""

from __future__ import annotations

from typing import TypeVar

import pyro
from pyro.params.param_store import param_with_module_name
from torch import nn

__all__ = ["module"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def module(name: str, nn_module: ModuleT) -> ModuleT:
    """Register a module's trainable parameters with Pyro under ``name``: ``pyro.module`` for any number of instances.

    Pyro's param store keeps the tensors that were first registered under a name. With ``pyro.module`` a second module
    of the same name (another instance, a deep copy) therefore never trains, and nothing says so. Here an entry of the
    store that is another tensor than the module's parameter is replaced, so that several instances can be trained, also
    by turns. Frozen parameters (``requires_grad=False``) are not registered.

    Args:
        name: the prefix of the parameters' names in the store.
        nn_module: the module.

    Returns:
        ``nn_module``.

    Raises:
        TypeError: ``nn_module`` is not a ``torch.nn.Module``.
        ValueError: a parameter is not contiguous, since Pyro's store would train a copy of it.

    Example:
        >>> first, second = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> _ = module("example", first), module("example", second)
        >>> pyro.get_param_store()["example$$$weight"] is second.weight
        True
    """
    if not isinstance(nn_module, nn.Module):
        raise TypeError(f"nn_module: expected a torch.nn.Module, got {type(nn_module).__name__}.")
    store = pyro.get_param_store()
    for parameter_name, parameter in nn_module.named_parameters():
        if not parameter.requires_grad:
            continue
        if not parameter.is_contiguous():
            raise ValueError(
                f"nn_module: expected contiguous parameters, got {parameter_name} with strides {parameter.stride()}: "
                "Pyro's store would train a contiguous copy instead. "
                "Replace it by nn.Parameter(parameter.detach().contiguous())."
            )
        full_name = param_with_module_name(name, parameter_name)
        if full_name in store and store[full_name] is not parameter:
            del store[full_name]
        pyro.param(full_name, parameter)
    return nn_module
