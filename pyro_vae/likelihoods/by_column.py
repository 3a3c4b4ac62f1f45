"""A distribution over the elements of a row whose columns have different distributions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

__all__ = ["ByColumn"]


class ByColumn(TorchDistribution):
    """Independent columns, of batch shape ``(*, C)`` and event shape ``()``; each belongs to one of several parts.

    Args:
        parts: pairs of column numbers and a distribution over these columns, of batch shape ``(*, n)``. Together they
            hold the columns 0 to C - 1, each once.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, parts: Sequence[tuple[list[int], Any]]) -> None:
        self.parts = list(parts)
        order = [i for columns, _ in self.parts for i in columns]
        self._back = [order.index(i) for i in range(len(order))]  # from the order of the parts to that of the columns
        leading = self.parts[0][1].batch_shape[:-1]
        super().__init__(torch.Size((*leading, len(order))))

    @property
    def support(self) -> Any:
        """The elements that each column takes."""
        return _Support(self)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> ByColumn:
        """Return the distribution with this batch shape."""
        leading = tuple(batch_shape)[:-1]
        return ByColumn([(columns, part.expand((*leading, len(columns)))) for columns, part in self.parts])

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of each element."""
        return self._joined(lambda columns, part: part.log_prob(value[..., columns]))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw all columns."""
        with torch.no_grad():
            return self._joined(lambda _, part: part.sample(torch.Size(sample_shape)))

    @property
    def mean(self) -> Tensor:
        """The mean of each column."""
        return self._joined(lambda _, part: part.mean)

    @property
    def variance(self) -> Tensor:
        """The variance of each column."""
        return self._joined(lambda _, part: part.variance)

    def a_value(self, like: Tensor) -> Tensor:
        """Return a value in the support of each column, ``(C,)``."""
        values = [like.new_full((len(c),), float(part.support is constraints.positive)) for c, part in self.parts]
        return torch.cat(values)[self._back]

    def _joined(self, of: Callable[[list[int], Any], Tensor]) -> Tensor:
        return torch.cat([of(columns, part) for columns, part in self.parts], -1)[..., self._back]


class _Support(constraints.Constraint):
    """Each column's own support."""

    def __init__(self, distribution: ByColumn) -> None:
        self._distribution = distribution

    def check(self, value: Tensor) -> Tensor:
        return self._distribution._joined(lambda columns, part: _inside(part, value[..., columns]))


def _inside(part: Any, value: Tensor) -> Tensor:
    """Whether each element is in the support of its column's distribution."""
    return part.support.check(value) & value.isfinite()
