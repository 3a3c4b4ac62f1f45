"""``pyro.module`` for several instances under one name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import pyro
from pyro.params.param_store import param_with_module_name
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.trace_struct import Trace
from torch import nn

from .._store import remove

__all__ = ["module"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)

# The modules that were registered while a trace was recorded. An entry goes with its trace.
_registered: WeakKeyDictionary[Trace, dict[str, list[nn.Module]]] = WeakKeyDictionary()


def module(name: str, nn_module: ModuleT) -> ModuleT:
    """Register a module's trainable parameters with Pyro under ``name``: ``pyro.module`` for any number of instances.

    Pyro's param store keeps the tensors that were first registered under a name. With ``pyro.module`` a second module
    of the same name (another instance, a deep copy) therefore never trains, and nothing says so. Here an entry of the
    store that is another tensor than the module's parameter is replaced, so that several instances can be trained, also
    by turns. A parameter may stand under several names, as where two modules share a part. Frozen parameters
    (``requires_grad=False``) are not registered.

    Within one run of model and guide a parameter's name belongs to one module: the step would train only one of two.

    Args:
        name: the prefix of the parameters' names in the store.
        nn_module: the module.

    Returns:
        ``nn_module``.

    Raises:
        TypeError: ``nn_module`` is not a ``torch.nn.Module``.
        ValueError: a parameter is not contiguous, since Pyro's store would train a copy of it; another module that has
            a parameter of the same name is registered under ``name`` in the same run.

    Example:
        >>> first, second = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> _ = module("example", first), module("example", second)
        >>> pyro.get_param_store()["example$$$weight"] is second.weight
        True
    """
    if not isinstance(nn_module, nn.Module):
        raise TypeError(f"nn_module: expected a torch.nn.Module, got {type(nn_module).__name__}.")
    for trace in _traces_of_this_run(name):
        modules = _registered.setdefault(trace, {}).setdefault(name, [])
        if not any(nn_module is other for other in modules):
            for other in modules:
                _require_no_common_name(name, other, nn_module)
            modules.append(nn_module)
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
            remove(store, full_name)
        pyro.param(full_name, parameter)
        if store._params.get(full_name) is parameter:  # not where a handler replaced it
            store._param_to_name[parameter] = full_name  # it may stand under another name too, from another module
    return nn_module


def _traces_of_this_run(name: str) -> Iterator[Trace]:
    """Yield the traces that record this call, from the innermost to that of the training step.

    ``SVI`` takes the parameters of a step from a trace of parameters only, around both guide and model. Traces outside
    it may see several steps, in which instances of one name may be trained by turns.
    """
    message: Any = {
        "type": "param",
        "name": param_with_module_name(name, ""),
        "fn": None,
        "is_observed": False,
        "args": (),
        "kwargs": {},
        "value": None,
        "scale": 1.0,
        "mask": None,
        "cond_indep_stack": (),
        "infer": {},
    }
    for handler in reversed(_PYRO_STACK):
        if isinstance(handler, TraceMessenger):
            yield handler.trace
            if handler.param_only:
                return
        elif isinstance(handler, BlockMessenger) and handler.hide_fn(message):
            return


def _require_no_common_name(name: str, first: nn.Module, second: nn.Module) -> None:
    """Refuse two modules with a parameter of the same name, unless it is the same tensor or frozen in both."""
    parameters = dict(first.named_parameters())
    for parameter_name, parameter in second.named_parameters():
        other = parameters.get(parameter_name)
        if other is None or other is parameter or not (other.requires_grad or parameter.requires_grad):
            continue
        raise ValueError(
            f"name: expected one module under the name {name!r} in a run of model and guide, got two, a "
            f"{type(first).__name__} and a {type(second).__name__}, which both have the parameter {parameter_name!r}. "
            f"Only one of them would be trained. Give each its own name: {type(second).__name__}(..., "
            f"name={name + '_2'!r}), or pyro_vae.module({name + '_2'!r}, ...)."
        )
