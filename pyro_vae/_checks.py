"""What users pass is checked here: shapes and dtypes only, so that a check costs no look at the data."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def require_tensor(name: str, value: Any) -> None:
    """Refuse anything that is not a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name}: expected a torch.Tensor, got {type(value).__name__}. Convert it, e.g. torch.as_tensor({name})."
        )


def require_rows(name: str, value: Any, rows: int) -> None:
    """Refuse what belongs to the data one by one, labels say, and has more or fewer rows than they."""
    if len(value) != rows:
        raise ValueError(f"{name}: expected {rows} rows as in x, got {len(value)}. Give one for each datum.")


def require_float(name: str, value: Any, dtype: torch.dtype | None = None) -> None:
    """Refuse integers, and floats of another width than the parameters' (unless autocast makes them)."""
    require_tensor(name, value)
    if not value.is_floating_point():
        wanted = dtype or torch.get_default_dtype()
        raise TypeError(
            f"{name}: expected floating-point values ({wanted}), got {value.dtype}. "
            f"Convert them: {name}.to({wanted}), and divide 8-bit pixels by 255."
        )
    if dtype is not None and value.dtype != dtype and not torch.is_autocast_enabled(value.device.type):
        raise TypeError(
            f"{name}: expected {dtype}, the dtype of the parameters, got {value.dtype}. "
            f"Convert it with {name}.to({dtype}), or the module with module.to({value.dtype})."
        )


def require_event_shape(name: str, value: Tensor, event_shape: Sequence[int], whose: str) -> None:
    """Refuse data whose rightmost dimensions are not one datum of the distribution (broadcasting would hide it)."""
    event_shape = tuple(event_shape)
    if value.ndim < len(event_shape) or tuple(value.shape[value.ndim - len(event_shape) :]) != event_shape:
        raise ValueError(
            f"{name}: expected event shape {event_shape}, that of {whose}, got a tensor of shape {tuple(value.shape)}. "
            f"Reshape {name} (e.g. {name}.flatten(1)) or build the network for this shape."
        )


def require_positive_int(name: str, value: Any) -> int:
    """Refuse what is not an integer (numpy's included) of at least 1."""
    try:
        number = None if isinstance(value, (bool, Tensor)) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < 1:
        raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}.")
    return number


def require_distribution(name: str, value: Any) -> None:
    """Refuse a part that gives something else than a distribution."""
    if not (hasattr(value, "log_prob") and hasattr(value, "event_shape")):
        raise TypeError(
            f"{name}: expected a module whose forward returns a distribution, got one that returns "
            f"{type(value).__name__}. Wrap a network, as BernoulliLikelihood(network) does."
        )


def dtype_of(module: nn.Module) -> torch.dtype | None:
    """The dtype that a module computes in: that of its first floating-point parameter."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
