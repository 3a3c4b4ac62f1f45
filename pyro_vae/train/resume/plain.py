"""Plain values: what a checkpoint may hold, so that reading it executes nothing."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["DTYPES", "plain"]

# The dtypes of tensors, by the name under which torch.save writes them.
DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}

# By their exact types: a subclass, such as np.float64 of float, is written but cannot be read.
_PLAIN = {bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size}
_DEPTH = 64


def plain(value: Any, where: str, depth: int = _DEPTH) -> Any:
    """Return a copy of a value that holds tensors and plain values only; numpy's numbers become Python's.

    Args:
        value: tensors and plain values, nested in dictionaries, lists and tuples.
        where: what to call ``value`` in an error.
        depth: number of levels that it may be nested.

    Raises:
        TypeError: a value of another kind.
        ValueError: it is nested too deeply.
    """
    if type(value) in _PLAIN:
        return value
    if isinstance(value, np.generic) and type(value.item()) in _PLAIN:
        return value.item()
    if (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.dtype in DTYPES.values()
        and not value.is_meta
    ):
        # Without the rest of a storage of which the tensor is a part.
        return value.detach().as_subclass(Tensor).to("cpu", copy=True).contiguous()
    if depth == 0:
        raise ValueError(f"{where}: expected at most {_DEPTH} levels, got more. Save a flat list or dictionary.")
    if type(value) in (dict, OrderedDict):
        return {_key(key, where): plain(item, f"{where}[{key!r}]", depth - 1) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(item, f"{where}[{position}]", depth - 1) for position, item in enumerate(value))
    raise TypeError(
        f"{where}: expected tensors and plain values, got {_kind(value)}, which a safe reader refuses. "
        "Leave it out, or save it as tensors, numbers, strings, lists, tuples and dictionaries of them."
    )


def _key(key: Any, where: str) -> Any:
    if isinstance(key, np.generic):
        key = key.item()
    if type(key) not in (bool, int, float, str, bytes, type(None)):
        raise TypeError(f"{where}: expected plain keys, got {key!r}. Save names in place of objects.")
    return key


def _is_ordinary(value: Tensor) -> bool:
    return value.layout == torch.strided and value.dtype in DTYPES.values() and not value.is_meta


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} and {value.layout} on {value.device}"
    return type(value).__name__
