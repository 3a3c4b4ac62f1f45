"""A batch as the arguments of model and guide."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["Arguments", "require_arguments"]


class Arguments:
    """Makes the arguments of model and guide.

    Args:
        transform: makes the positional arguments from a batch; None takes the batch as it is.
        size: number of data in the whole set, handed on as ``size=``; None leaves it out.
    """

    def __init__(self, transform: Callable[[Any], Any] | None, size: int | None) -> None:
        self._transform = transform
        self._size = size

    def positional(self, batch: Any) -> tuple[Any, ...]:
        """Return a batch as positional arguments."""
        if self._transform is not None:
            batch = self._transform(batch)
        return tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)

    def keyword(self, args: tuple[Any, ...], values: Mapping[str, float]) -> dict[str, Any]:
        """Return the keyword arguments: ``size``, and the schedules' values.

        The values are tensors, so that a captured graph has them as inputs and not as constants.
        """
        device = next((arg.device for arg in args if isinstance(arg, Tensor)), None)
        dtype = torch.get_default_dtype()
        kwargs: dict[str, Any] = {
            name: torch.full((), value, device=device, dtype=dtype) for name, value in values.items()
        }
        if self._size is not None:
            kwargs["size"] = self._size
        return kwargs

    def for_validation(self, rows: int) -> dict[str, Any]:
        """Return the keyword arguments of a validation batch.

        Args:
            rows: number of data in the batch, which may be more than ``size``.
        """
        return {} if self._size is None else {"size": max(self._size, rows)}


def require_arguments(name: str, args: tuple[Any, ...], model: Callable[..., Any]) -> None:
    """Refuse batches that are not the positional arguments of the model."""
    try:
        inspect.signature(model).bind_partial(*args)
    except TypeError as error:
        raise TypeError(
            f"{name}: expected batches that are the positional arguments of the model, got {len(args)} items, "
            f"which do not fit ({error}). Give transform=, e.g. transform=lambda batch: batch[0] to drop labels."
        ) from error
