"""Checks of what users pass. Most look at shapes and dtypes alone, so that they cost no pass over the data."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def require_tensor(name: str, value: Any) -> None:
    """Refuse anything that is not a tensor."""
    if not isinstance(value, Tensor):
        convert = f"pyro_vae.data.table({name}).values" if hasattr(value, "iloc") else f"torch.as_tensor({name})"
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}. Convert it, e.g. {convert}.")


def require_one_of(name: str, value: Any, *allowed: Any) -> None:
    """Refuse what is none of the values named."""
    if not any(value is other or (isinstance(other, str) and value == other) for other in allowed):
        *most, last = map(repr, allowed)
        raise ValueError(f"{name}: expected {', '.join(most)} or {last}, got {value!r}.")


def require_rows(name: str, value: Any, rows: int, source: str = "as in x") -> None:
    """Refuse what should have one row for each datum (labels, for instance) and has another number of rows."""
    if len(value) != rows:
        raise ValueError(f"{name}: expected {rows} rows {source}, got {len(value)}. Give one for each datum.")


def require_float(name: str, value: Any, dtype: torch.dtype | None = None) -> None:
    """Refuse integers, and floats of another dtype than ``dtype`` (under autocast any float passes)."""
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
    """Refuse a tensor whose rightmost dimensions are not ``event_shape``; broadcasting would accept some of them."""
    event_shape = tuple(event_shape)
    if value.ndim < len(event_shape) or tuple(value.shape[value.ndim - len(event_shape) :]) != event_shape:
        raise ValueError(
            f"{name}: expected event shape {event_shape}, that of {whose}, got a tensor of shape {tuple(value.shape)}. "
            f"Reshape {name} (e.g. {name}.flatten(1)) or build the network for this shape."
        )


def require_mask(name: str, value: Any, x: Tensor) -> None:
    """Refuse a mask that is not boolean, or not of the shape of the data."""
    require_tensor(name, value)
    if value.dtype != torch.bool or value.shape != x.shape:
        raise ValueError(
            f"{name}: expected a boolean tensor of the shape of x, {tuple(x.shape)}, True where x is observed, got "
            f"{value.dtype} of shape {tuple(value.shape)}. Write ~x.isnan(), for instance."
        )


def require_positive_int(name: str, value: Any) -> int:
    """Return ``value`` as an int; refuse what is not an integer (numpy integers are) of at least 1."""
    number = as_int(value)
    if number is None or number < 1:
        raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}.")
    return number


def require_count(name: str, value: Any) -> int:
    """Return ``value`` as an int; refuse what is not an integer (numpy integers are) of at least 0."""
    number = as_int(value)
    if number is None or number < 0:
        raise ValueError(f"{name}: expected an integer of at least 0, got {value!r}.")
    return number


def require_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """Return ``value`` as a float; refuse what is no finite number (numpy numbers are) from ``low`` to ``high``."""
    number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    if not (low <= number <= high and math.isfinite(number)):
        least = f" of at least {low:g}" if low > -math.inf and high == math.inf else ""
        between = f" from {low:g} to {high:g}" if high < math.inf else ""
        raise ValueError(f"{name}: expected a finite number{least}{between}, got {value!r}.")
    return number


def require_positive_number(name: str, value: Any, *, finite: bool = True) -> float:
    """Return ``value`` as a float; refuse what is not a real number (numpy numbers are) above 0."""
    number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    if not number > 0 or (finite and number == math.inf):
        raise ValueError(f"{name}: expected a {'finite ' if finite else ''}number above 0, got {value!r}.")
    return number


def require_probs(name: str, value: Any, classes: int) -> Tensor:
    """Return C probabilities in float64, equal ones for None; refuse what is no distribution over the classes."""
    if value is None:
        return torch.full((classes,), 1.0 / classes, dtype=torch.float64)
    try:
        probs = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError):
        probs = torch.empty(0)
    if probs.shape != (classes,) or not (probs > 0).all() or abs(probs.sum().item() - 1) > 1e-4:
        raise ValueError(
            f"{name}: expected {classes} probabilities above 0 that sum to 1, one for each class, got {value!r}. "
            f"Divide counts by their sum, or leave {name} out for equal ones."
        )
    return probs


def require_shape(name: str, value: Any) -> tuple[int, ...] | None:
    """Return the shape of one datum as a tuple of ints; None, a vector of any length, stays None."""
    if value is None:
        return None
    sizes = [as_int(size) for size in value] if isinstance(value, Sequence) and not isinstance(value, str) else []
    if not sizes or any(size is None or size < 1 for size in sizes):
        raise ValueError(
            f"{name}: expected a sequence of at least one integer, each at least 1, got {value!r}. "
            "Write (784,) for vectors of 784 elements, (1, 28, 28) for images."
        )
    return tuple(size for size in sizes if size is not None)


def require_distribution(name: str, value: Any) -> None:
    """Refuse what a part returned if it is not a distribution."""
    if not (hasattr(value, "log_prob") and hasattr(value, "event_shape")):
        raise TypeError(
            f"{name}: expected a module whose forward returns a distribution, got one that returns "
            f"{type(value).__name__}. Wrap a network, as BernoulliLikelihood(network) "
            "and DiagonalNormalPosterior(network) do."
        )


def dtype_of(module: nn.Module) -> torch.dtype | None:
    """Return the dtype that a module computes in, that of its first floating-point parameter, or None."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), None)


def as_int(value: Any) -> int | None:
    """Return an integer (numpy integers too) as an int, and None for anything else, booleans included."""
    try:
        return None if isinstance(value, (bool, Tensor)) else operator.index(value)
    except TypeError:
        return None
