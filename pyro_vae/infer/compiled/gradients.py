"""What stands in ``.grad`` of the parameters between steps: the zeros that Pyro's SVI leaves, or what others put."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["Gradients"]


class Gradients:
    """The gradients between steps.

    Pyro's ``SVI`` zeroes gradients after a step and adds to what it finds at the next one. So a parameter that had a
    gradient once is updated with zeros in a step in which it has none (its momentum goes on), and a gradient that
    somebody else computed before the step counts.
    """

    def __init__(self) -> None:
        self._zeros: dict[int, tuple[Tensor, Tensor, int]] = {}  # by id: parameter, its zeros, their version

    def reset(self, params: Iterable[Tensor]) -> None:
        """Zero the gradients of the parameters that have one."""
        for p in params:
            if p.grad is not None and not self._is_zero(p):
                self._put(p)

    def start(self, params: Iterable[Tensor]) -> None:
        """Put zeros where a parameter has no gradient: those that Pyro's step would leave."""
        for p in params:
            if p.grad is None:
                self._put(p)

    def clear(self, params: Iterable[Tensor]) -> None:
        """Remove what an earlier call left, so that the next gradients stand alone."""
        for p in params:
            if p.grad is not None and not self._is_zero(p):
                p.grad = None

    def zeros(self, params: Iterable[Tensor]) -> list[Tensor]:
        """Return zeros in the shape of each parameter."""
        return [self._zeros[id(p)][1] for p in params]

    def foreign(self, params: Iterable[Tensor]) -> bool:
        """Whether somebody put a gradient there that is not zero."""
        return any(p.grad is not None and not self._is_zero(p) and self._takes_over(p) for p in params)

    def _is_zero(self, p: Tensor) -> bool:
        mine = self._zeros.get(id(p))
        return mine is not None and mine[0] is p and p.grad is mine[1] and mine[1]._version == mine[2]

    def _takes_over(self, p: Tensor) -> bool:
        """Whether a gradient that is not ours holds values; where it does not, zeros take its place."""
        assert p.grad is not None
        if p.grad.layout is torch.strided and not bool(p.grad.any()):
            self._put(p)
            return False
        return True

    def _put(self, p: Tensor) -> None:
        mine = self._zeros.get(id(p))
        if mine is None or mine[0] is not p or mine[1]._version != mine[2] or mine[1].shape != p.shape:
            zeros = torch.zeros_like(p, requires_grad=False)
            mine = self._zeros[id(p)] = (p, zeros, zeros._version)
        p.grad = mine[1]
