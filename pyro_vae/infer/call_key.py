"""The arguments of a call as a flat list of tensors and a hashable key of all the rest."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import enum
import hashlib
import itertools
import types
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["code_in", "digest", "flatten", "with_tensors"]

_PLAIN = (bool, int, complex, str, bytes, type(None), range, torch.dtype, torch.device, torch.layout, enum.Enum)
_VALUES = (int, float, complex, str, bytes, tuple, list, dict)
_BUILT_IN = {bool, *_VALUES}
# Compared by identity; what they read is watched.
_CODE = (type, types.FunctionType, types.MethodType, types.BuiltinFunctionType, nn.Module)


def flatten(value: Any, tensors: list[Tensor], where: str = "args") -> Hashable:
    """Append the tensors in ``value`` to ``tensors`` and return what identifies the rest.

    Tensors are told apart by shape, strides, dtype, device and whether they require a gradient, not by their values;
    Python values by type and value.

    Args:
        value: tensors, plain Python values, numpy scalars, functions and modules, and tuples, lists, dictionaries,
            namespaces and dataclasses of them.
        tensors: the list that grows, in the order of the walk.
        where: what to call ``value`` in an error.

    Raises:
        TypeError: a value that can be neither an input of a graph nor part of a key, a numpy array or an iterator for
            instance.
    """
    if isinstance(value, Tensor):
        _require_strides(value, where)
        if isinstance(value, nn.Parameter):  # closed over rather than an input, so that it gets its gradient
            return _Same(value)
        tensors.append(value)
        return (type(value), value.shape, value.stride(), value.dtype, value.device, value.requires_grad)
    if type(value) not in _BUILT_IN and _has_attributes(value):
        raise TypeError(
            f"{where}: a {type(value).__name__} with attributes of its own can be neither an input of a graph nor part "
            "of its key. Pass its values, or a dataclass of them."
        )
    if isinstance(value, (tuple, list)):
        return (type(value), *(flatten(part, tensors, f"{where}[{i}]") for i, part in enumerate(value)))
    if isinstance(value, dict):
        return (type(value), *((k, flatten(part, tensors, f"{where}[{k!r}]")) for k, part in value.items()))
    if isinstance(value, float):
        return (type(value), value if value == value and value else repr(value))  # NaN, and 0.0 apart from -0.0
    if isinstance(value, _PLAIN) or (isinstance(value, _CODE) and type(value).__hash__ is not None):
        return (type(value), value)
    if isinstance(value, np.generic):
        return (type(value), flatten(value.item(), tensors, where))
    if _has_fields(value):
        return (type(value), *((k, flatten(part, tensors, f"{where}.{k}")) for k, part in vars(value).items()))
    raise TypeError(
        f"{where}: a {type(value).__name__} can be neither an input of a graph nor part of its key. Pass a tensor "
        "(torch.as_tensor(...)), a plain value, or a tuple, list, dict or dataclass of them."
    )


def code_in(value: Any) -> Iterator[Any]:
    """Yield the functions, modules and classes among some arguments."""
    if isinstance(value, _CODE):
        yield value
    elif isinstance(value, (tuple, list)):
        yield from itertools.chain(*map(code_in, value))
    elif isinstance(value, dict):
        yield from itertools.chain(*map(code_in, value.values()))
    elif _has_fields(value):
        yield from code_in(vars(value))


class _Same:
    """A parameter as part of a key: itself, and no other of its shape."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.parameter is other.parameter

    def __hash__(self) -> int:
        return id(self.parameter)

    def __repr__(self) -> str:
        return f"Parameter{tuple(self.parameter.shape)}{self.parameter.dtype}"


def with_tensors(value: Any, tensors: list[Tensor]) -> Any:
    """Return a copy of ``value`` with ``tensors`` in place of its own, in the order in which ``flatten`` found them."""
    return _rebuilt(value, iter(tensors))


def digest(key: Hashable) -> str:
    """Return a name for a key that is the same in every process."""
    return hashlib.sha256(_described(key).encode()).hexdigest()[:16]


def _rebuilt(value: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(value, Tensor):
        return value if isinstance(value, nn.Parameter) else next(tensors)
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple
        return type(value)(*(_rebuilt(part, tensors) for part in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_rebuilt(part, tensors) for part in value)
    if isinstance(value, dict):
        rebuilt = copy.copy(value)  # keeps a defaultdict's function
        if getattr(value, "__dict__", None) is value:  # its keys are its attributes
            rebuilt.__dict__ = rebuilt
        for key, part in value.items():
            rebuilt[key] = _rebuilt(part, tensors)
        return rebuilt
    if _has_fields(value):
        rebuilt = copy.copy(value)
        for key, part in vars(value).items():
            object.__setattr__(rebuilt, key, _rebuilt(part, tensors))
        return rebuilt
    return value


def _has_fields(value: Any) -> bool:
    """Whether this object is its attributes and nothing else."""
    if isinstance(value, (types.SimpleNamespace, argparse.Namespace)):
        return True
    return dataclasses.is_dataclass(value) and not isinstance(value, type) and hasattr(value, "__dict__")


def _has_attributes(value: Any) -> bool:
    """Whether a number, a text or a container of a class of the program's own is more than its value."""
    if not isinstance(value, _VALUES) or isinstance(value, enum.Enum):
        return False
    own = getattr(value, "__dict__", None)
    return bool(own) and own is not value and not dataclasses.is_dataclass(value)


def _require_strides(value: Tensor, where: str) -> None:
    """Refuse a tensor that is not its elements in memory, as strides tell where they are."""
    if value.layout is not torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else f"a tensor of layout {value.layout}"
        raise TypeError(f"{where}: {kind} cannot be an input of a graph.")
    if value.is_neg() or value.is_conj():
        raise TypeError(
            f"{where}: a view whose elements are negated or conjugated as they are read cannot be an input of a graph. "
            "Pass x.resolve_neg() or x.resolve_conj()."
        )


def _described(key: Any) -> str:
    if isinstance(key, tuple):
        return f"({','.join(map(_described, key))})"
    if isinstance(key, _CODE):
        named = key if hasattr(key, "__qualname__") else type(key)
        return f"{getattr(named, '__module__', '')}.{named.__qualname__}"
    return repr(key)
