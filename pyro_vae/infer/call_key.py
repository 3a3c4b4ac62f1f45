"""Arguments as a flat list of tensors and a hashable key of all the rest."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor

_LEAF = "tensor"


def flatten(value: Any, tensors: list[Tensor], where: str = "args") -> Hashable:
    """Appends the tensors in ``value`` to ``tensors`` and returns what identifies the rest.

    Tensors are told apart by shape, strides, dtype and device alone; Python values by type and value.

    Args:
        value: tensors, hashable Python values, and tuples, lists and dictionaries of them.
        tensors: the list that grows.
        where: what to call ``value`` in an error.

    Raises:
        TypeError: for a value that can be neither an input nor part of a key, such as a numpy array.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        return (_LEAF, value.shape, value.stride(), value.dtype, value.device, value.requires_grad)
    if isinstance(value, tuple | list):
        return (type(value), *(flatten(v, tensors, f"{where}[{i}]") for i, v in enumerate(value)))
    if isinstance(value, dict):
        return (dict, *((k, flatten(v, tensors, f"{where}[{k!r}]")) for k, v in value.items()))
    try:
        hash(value)
    except TypeError:
        raise TypeError(
            f"{where}: a {type(value).__name__} can be neither an input of a captured step nor part of its key. Pass a "
            "tensor (torch.as_tensor(...)), a hashable value, or a tuple, list or dict of them; or use compile=False."
        ) from None
    return (type(value), value)


def with_tensors(value: Any, tensors: list[Tensor]) -> Any:
    """``value`` with its tensors replaced by ``tensors``, which :func:`flatten` found in that order."""
    return _rebuild(value, iter(tensors))


def _rebuild(value: Any, tensors: Any) -> Any:
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple
        return type(value)(*(_rebuild(v, tensors) for v in value))
    if isinstance(value, tuple | list):
        return type(value)(_rebuild(v, tensors) for v in value)
    if isinstance(value, dict):
        return {k: _rebuild(v, tensors) for k, v in value.items()}
    return value
