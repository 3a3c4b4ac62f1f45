"""Whose the parameters of autoguides in Pyro's store are: all autoguides of one kind use the same names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from pyro.params.param_store import param_with_module_name
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .._store import remove

__all__ = ["claim", "is_claimed", "without_parameters_of_others"]

_owned: Any = WeakIdKeyDictionary()  # its keys: the parameters of all autoguides, as long as they exist


def claim(guide: Any) -> None:
    """Put an autoguide's parameters in their places in Pyro's store.

    What another autoguide has there is removed from the store, and stays with that one. The values of any other entry,
    which was loaded from a file, are taken over, as Pyro does.

    Raises:
        ValueError: an entry that was loaded has another shape.
    """
    store = pyro.get_param_store()
    for name, own in _named_parameters(guide):
        stored = store._params.get(name)
        if stored is not None and stored is not own:
            if stored not in _owned:
                if stored.shape != own.shape:
                    raise ValueError(
                        f"{name}: expected an entry of shape {tuple(own.shape)} in Pyro's parameter store, got "
                        f"{tuple(stored.shape)}. Call pyro.clear_param_store() before another model is trained."
                    )
                with torch.no_grad():
                    own.copy_(stored)
            remove(store, name)  # Pyro enters ours when it is used next
        _owned[own] = True


def is_claimed(parameter: Tensor) -> bool:
    """Whether a parameter belongs to an autoguide that has claimed its places."""
    return parameter in _owned


@contextlib.contextmanager
def without_parameters_of_others() -> Iterator[None]:
    """Take the parameters of all autoguides out of Pyro's store, so that a new one starts at values of its own."""
    store = pyro.get_param_store()
    others = {name: (p, store._constraints[name]) for name, p in store._params.items() if p in _owned}
    for name in others:
        remove(store, name)
    try:
        yield
    finally:
        for name, (parameter, constraint) in others.items():
            if name not in store:
                store._params[name], store._constraints[name] = parameter, constraint
                store._param_to_name.setdefault(parameter, name)


def _named_parameters(guide: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield each parameter with its name in Pyro's store, where it is unconstrained."""
    for module in guide.modules():
        if not isinstance(module, PyroModule):
            continue
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield module._pyro_get_fullname(name.removesuffix("_unconstrained")), parameter
        for name, part in module._modules.items():
            if part is not None and not isinstance(part, PyroModule):
                for inner, parameter in part.named_parameters():
                    yield param_with_module_name(module._pyro_get_fullname(name), inner), parameter
