"""Random division of a data set, for instance into training and validation data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from .._checks import require_rows, require_tensor
from .noise import stream


@overload
def split(x: Tensor, /, *, sizes: Sequence[int], seed: int = 0) -> list[Tensor]: ...
@overload
def split(
    x: Tensor, y: Tensor, /, *others: Tensor, sizes: Sequence[int], seed: int = 0
) -> list[tuple[Tensor, ...]]: ...
def split(x: Tensor, *others: Tensor, sizes: Sequence[int], seed: int = 0) -> list[Tensor] | list[tuple[Tensor, ...]]:
    """Split data at random into parts of given sizes, the same parts for the same seed.

    Args:
        x: Data, (N, *E).
        *others: Labels or other values of each datum, N rows each, split in the same way.
        sizes: Numbers of data of the parts; they add up to N.
        seed: Seed of the random order.

    Returns:
        One part for each size: a tensor, or a tuple of tensors where ``others`` are given.

    Raises:
        TypeError: If ``x`` or one of ``others`` is not a tensor.
        ValueError: If the sizes are not positive or do not add up to N, or if the lengths differ.

    Example:
        >>> x, y = torch.arange(10.0), torch.arange(10)
        >>> (train_x, train_y), (valid_x, valid_y) = split(x, y, sizes=(8, 2), seed=0)
        >>> len(train_x), len(valid_x), torch.equal(train_x.long(), train_y)
        (8, 2, True)
    """
    require_tensor("x", x)
    for position, other in enumerate(others):
        require_tensor(f"others[{position}]", other)
        require_rows(f"others[{position}]", other, len(x))
    if any(size < 1 for size in sizes) or sum(sizes) != len(x):
        raise ValueError(
            f"sizes: expected positive numbers that add up to the {len(x)} data, got {tuple(sizes)}, "
            f"which add up to {sum(sizes)}."
        )
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(stream(seed)))
    parts = order.split(list(sizes))
    if not others:
        return [x[part.to(x.device)] for part in parts]
    return [tuple(a[part.to(a.device)] for a in (x, *others)) for part in parts]
