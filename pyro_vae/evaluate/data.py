"""The arguments of a model and a guide that belong to the data row by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..infer.call_key import with_tensors


class Data:
    """The positional arguments and ``mask=`` of a model and a guide, to be cut into chunks of rows.

    Args:
        args: positional arguments: tensors of N rows each, or tuples, lists and dictionaries of them. Tensors without
            dimensions and Python values belong to every row.
        kwargs: keyword arguments. ``mask`` is cut like a positional argument, all others belong to every row.

    Raises:
        TypeError: no tensor among the positional arguments, or a numpy array.
        ValueError: no rows, or tensors of different numbers of rows.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._cut = (args, kwargs.get("mask"))
        self._whole = kwargs
        named = [*_tensors(args, "args"), *_tensors(kwargs.get("mask"), "mask")]
        rows = {name: len(tensor) for name, tensor in named if tensor.ndim}
        first = next((name for name in rows if name.startswith("args")), None)
        if first is None:
            got = ", ".join(type(arg).__name__ for arg in args) or "none"
            raise TypeError(
                f"args: expected the data as positional arguments, at least one tensor (N, ...), got {got}. "
                "Convert them, e.g. torch.as_tensor(x)."
            )
        self.rows = rows[first]
        if self.rows == 0:
            raise ValueError(f"{first}: expected data of at least one row, got a tensor without rows.")
        for name, length in rows.items():
            if length != self.rows:
                raise ValueError(
                    f"{name}: expected {self.rows} rows as in {first}, got {length}. Positional tensors and mask= are "
                    "cut with the data; give a tensor that belongs to all data by keyword."
                )
        self.tensors = [tensor.detach() for _, tensor in named]

    def chunk(self, first: int, last: int) -> list[Tensor]:
        """The tensors of the rows from ``first`` to before ``last``."""
        return [tensor[first:last] if tensor.ndim else tensor for tensor in self.tensors]

    def length(self, chunk: list[Tensor]) -> int:
        """The number of rows of a chunk."""
        return next(len(tensor) for tensor in chunk if tensor.ndim)

    def repeated(self, rows: int) -> list[Tensor]:
        """The tensors of the first row, ``rows`` times."""
        return [tensor[:1].expand(rows, *tensor.shape[1:]) if tensor.ndim else tensor for tensor in self.tensors]

    def arguments(self, chunk: list[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of a chunk."""
        args, mask = with_tensors(self._cut, chunk)
        return args, {**self._whole, "mask": mask} if "mask" in self._whole else self._whole


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors in tuples, lists and dictionaries, each with its name."""
    if isinstance(value, nn.Parameter):
        raise TypeError(f"{name}: expected data, got a parameter. Pass {name}.detach().")
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _tensors(part, f"{name}[{key!r}]")
    elif isinstance(value, tuple | list):
        for position, part in enumerate(value):
            yield from _tensors(part, f"{name}[{position}]")
    elif type(value).__module__ == "numpy" and getattr(value, "ndim", None):
        raise TypeError(f"{name}: expected a torch.Tensor, got a numpy array. Convert it: torch.as_tensor({name}).")
