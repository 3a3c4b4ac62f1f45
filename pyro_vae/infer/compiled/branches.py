"""Values of which code has one or another: those of a loop's variable, and what differs between two branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .places import MISSING

__all__ = ["State", "each_of", "either", "joined"]

State = tuple[list[Any], dict[str, Any]]  # the values on the stack, and those of local variables
_MOST = 64  # values that are followed


class _AnyOf:
    """One of several values: what a loop's variable stands for, or one that differs between two branches."""

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values = values


def each_of(value: Any) -> tuple[Any, ...]:
    """The values that one may be; none where it is not known."""
    return value.values if isinstance(value, _AnyOf) else () if value is MISSING else (value,)


def either(values: Sequence[Any]) -> Any:
    """What is one of several values; of many, or of none, nothing is known."""
    distinct = {id(one): one for value in values for one in each_of(value)}
    if len(distinct) == 1:
        return next(iter(distinct.values()))
    return _AnyOf(tuple(distinct.values())) if 0 < len(distinct) <= _MOST else MISSING


def joined(states: list[State]) -> State:
    """What is known where several branches meet."""
    depth = min(len(stack) for stack, _ in states)
    stack = [either(values) for values in zip(*(stack[len(stack) - depth :] for stack, _ in states), strict=True)]
    names = dict.fromkeys(name for _, known in states for name in known)
    return stack, {name: either([known.get(name, MISSING) for _, known in states]) for name in names}
