"""Exposures: how long, how large or how often a count was taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._checks import as_int, require_float

__all__ = ["log_exposure", "require_position"]


def require_position(position: Any) -> int | None:
    """Return the position of the exposure among what is given, or None; refuse what is no integer of at least 0."""
    number = as_int(position)
    if position is not None and (number is None or number < 0):
        raise ValueError(
            f"exposure: expected the position of the exposures in what is given, 0 or more, or None, got {position!r}. "
            "Write exposure=0 where they are given first."
        )
    return number


def log_exposure(
    position: int | None, given: Sequence[Any], like: Tensor, event_shape: Sequence[int] | None
) -> Tensor | None:
    """Return the logarithm of the exposures, in a shape that broadcasts with ``like`` ``(*, *E)``.

    Args:
        position: the position of the exposures in ``given``; with None there are none.
        given: what is given; the exposures are ``(B,)`` or ``(B, 1)``, one for each datum, or ``(B, *E)``, one for each
            element.
        like: log-rates.
        event_shape: ``E``; None means a vector.
    """
    if position is None:
        return None
    name = f"given[{position}]"
    if len(given) <= position:
        raise ValueError(f"{name}: expected the exposures, got {len(given)} values. Pass them after x (or z).")
    exposure = given[position]
    require_float(name, exposure, like.dtype)
    event_dim = 1 if event_shape is None else len(event_shape)
    if torch.distributions.Distribution._validate_args and not (exposure > 0).all():
        raise ValueError(f"{name}: expected exposures above 0, got {exposure.min().item():.6g}. Leave such data out.")
    if exposure.ndim > 0 and all(size == 1 for size in exposure.shape[1:]):
        exposure = exposure.reshape(-1, *(1,) * event_dim)
    elif exposure.ndim > 1 and exposure.shape[1:] != (event := like.shape[like.ndim - event_dim :]):
        raise ValueError(
            f"{name}: expected exposures of shape (B,), (B, 1) or (B, *E) with E = {tuple(event)}, got "
            f"{tuple(exposure.shape)}. Give one for each datum, or one for each element."
        )
    return exposure.log()
