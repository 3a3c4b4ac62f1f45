"""What became of one of Pyro's tests when its steps went through a capture."""

from __future__ import annotations

import math
from typing import Any

# In the order of the table. The first three count as kept promises.
EQUAL = "equal"
ROUNDING = "equal up to rounding"
LEFT = "left to Pyro"
REFUSED = "refused"
DIFFERENT = "different"
CRASHED = "crashed"
# These say nothing about the capture.
FAILS_ANYWAY = "fails in plain Pyro too"
NOT_REPEATABLE = "not repeatable in plain Pyro"
TOO_LONG = "takes too long in plain Pyro"
KEPT = (EQUAL, ROUNDING, LEFT)
COUNTED = (*KEPT, REFUSED, DIFFERENT, CRASHED)
ASIDE = (FAILS_ANYWAY, NOT_REPEATABLE, TOO_LONG)

Result = dict[str, Any]


def verdict(plain: Result, captured: Result, again: Result | None = None) -> tuple[str, str]:
    """Compare two runs of one test.

    Args:
        plain: its result by Pyro.
        captured: its result through a capture.
        again: its result by Pyro once more, to tell a difference from a test that never repeats itself.

    Returns:
        One of ``COUNTED`` or ``ASIDE``, and the words that go with it.
    """
    if plain["outcome"] == "too long":
        return TOO_LONG, ""
    if plain["outcome"] in ("failed", "died"):
        return FAILS_ANYWAY, plain["message"]
    if captured["refusals"]:
        return REFUSED, captured["refusals"][0]
    if captured["outcome"] == "died":
        return CRASHED, captured["message"]
    difference = _difference(plain, captured)
    if again is not None and difference != 0 and _difference(plain, again) != 0:
        return NOT_REPEATABLE, ""
    if captured["outcome"] in ("failed", "too long") and captured["outcome"] != plain["outcome"]:
        if difference > 1e-6 and not captured["message"].startswith("TooLong") and _sees_numbers(captured):
            return DIFFERENT, captured["message"]
        return CRASHED, captured["message"] or captured["outcome"]
    if difference > 1e-6:
        return DIFFERENT, f"largest relative difference {difference:.3g} in {len(plain['numbers'])} calls"
    if captured["said"]:
        return LEFT, captured["said"][0]
    return (ROUNDING, f"{difference:.3g}") if difference > 0 else (EQUAL, "")


def _sees_numbers(captured: Result) -> bool:
    """Whether a test failed on its numbers, not on an error of the code."""
    return captured["message"].startswith(("AssertionError", "Failed"))


def _difference(a: Result, b: Result) -> float:
    """The largest relative difference of the numbers of two runs; infinite if they are not of one form."""
    return max(_of(a["numbers"], b["numbers"]), _of(a["parameters"], b["parameters"]))


def _of(a: Any, b: Any) -> float:
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return max((_of(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    if a == b:
        return 0.0
    try:
        x, y = complex(a), complex(b)
    except (TypeError, ValueError):
        return math.inf
    size = abs(x - y) / max(1.0, abs(x))
    return size if size == size else math.inf
