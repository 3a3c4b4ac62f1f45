"""A resumed ``CompiledSVI`` at the very point of its captures where it was stopped.

A ``CompiledSVI`` runs the first call with arguments of new shapes by Pyro, captures the second, and runs the captured
graph from then on. Both ways give the same numbers up to rounding, not to the bit. A resumed run therefore makes such
calls again before it goes on, and undoes what they did.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["Calls"]

_ENOUGH = 2  # calls after which nothing changes any more


class Calls:
    """How often a compiled objective was called with arguments of each kind."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._owed: dict[str, int] = {}

    def owe(self, counts: dict[str, int]) -> None:
        """Go on from ``counts``: those calls are to be made again when their arguments next come."""
        self.counts, self._owed = dict(counts), dict(counts)

    def before(self, kind: str, args: tuple[Any, ...], keywords: dict[str, Any], repeat: Callable[[int], None]) -> None:
        """Count a call that is about to be made; where some are owed, ``repeat`` them first."""
        key = f"{kind}{_shapes(args)}{_shapes(keywords.values())}"
        if self._owed:
            owed = self._owed.pop(key, 0)
            if owed:
                repeat(owed)
        count = self.counts.get(key, 0)
        if count < _ENOUGH:
            self.counts[key] = count + 1


def _shapes(values: Any) -> str:
    return ";".join(f"{tuple(v.shape)}{v.dtype}" if isinstance(v, Tensor) else repr(v) for v in values)
