"""A batch as the arguments of model and guide."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Arguments", "require_arguments"]


class Arguments:
    """Makes the arguments of model and guide.

    Args:
        transform: makes the positional arguments from a batch; None takes the batch as it is.
        size: number of data in the whole set, handed on as ``size=``; None leaves it out.
        keywords: names of the last items of a batch, which are handed on by name.
    """

    def __init__(self, transform: Callable[[Any], Any] | None, size: int | None, keywords: Sequence[str] = ()) -> None:
        self._transform = transform
        self._size = size
        self._keywords = tuple(keywords)

    def of(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return a batch as positional arguments, and as those that have a name.

        Raises:
            ValueError: the batch has too few items.
        """
        if self._transform is not None:
            batch = self._transform(batch)
        items = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
        first_named = len(items) - len(self._keywords)
        if self._keywords and first_named < 1:
            raise ValueError(
                f"keywords: expected batches that are tuples of at least {1 + len(self._keywords)} items, the last of "
                f"them {', '.join(self._keywords)}, got {len(items)}. Give (x, mask) for keywords=('mask',), for "
                "instance."
            )
        return items[:first_named], dict(zip(self._keywords, items[first_named:], strict=True))

    def keyword(self, args: tuple[Any, ...], named: Mapping[str, Any], values: Mapping[str, float]) -> dict[str, Any]:
        """Return the keyword arguments: the batch's own, ``size``, and the schedules' values.

        The values are tensors, so that a captured graph has them as inputs and not as constants.
        """
        device = next((arg.device for arg in args if isinstance(arg, Tensor)), None)
        dtype = torch.get_default_dtype()
        kwargs: dict[str, Any] = {
            **named,
            **{name: torch.full((), value, device=device, dtype=dtype) for name, value in values.items()},
        }
        if self._size is not None:
            kwargs["size"] = self._size
        return kwargs

    def for_validation(self, named: Mapping[str, Any], rows: int) -> dict[str, Any]:
        """Return the keyword arguments of a validation batch.

        Args:
            named: the batch's own.
            rows: number of data in the batch, which may be more than ``size``.
        """
        return dict(named) if self._size is None else {**named, "size": max(self._size, rows)}


def require_arguments(name: str, args: tuple[Any, ...], named: Mapping[str, Any], model: Callable[..., Any]) -> None:
    """Refuse batches that are not the arguments of the model."""
    try:
        inspect.signature(model).bind_partial(*args, **named)
    except TypeError as error:
        if "unexpected keyword" in str(error):
            raise TypeError(
                f"keywords: expected names of the model's arguments, {', '.join(inspect.signature(model).parameters)}, "
                f"got {', '.join(named)}. Name one of them, or add it to the model."
            ) from error
        raise TypeError(
            f"{name}: expected batches that are the positional arguments of the model, got {len(args)} items, "
            f"which do not fit ({error}). Give transform=, e.g. transform=lambda batch: batch[0] to drop labels."
        ) from error
