"""The checking mode: a captured step against Pyro's own."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


def compare(
    loss: Any, expected: Any, grads: dict[str, Tensor | None], params: dict[str, Tensor], precision: str
) -> None:
    """Raises unless captured loss and gradients are Pyro's, up to rounding."""
    for got, want in zip(*(x if isinstance(x, tuple) else (x,) for x in (loss, expected)), strict=True):
        tolerance = 2e-2 if precision == "bf16" else 1e-4
        if not (got == want or abs(got - want) <= tolerance * (1 + abs(want)) or (got != got and want != want)):
            raise RuntimeError(_differs("the loss", got, want))
    for name, want in grads.items():
        got = params[name].grad
        if (got is None) != (want is None):
            raise RuntimeError(_differs(f"the gradient of {name!r}", got, want))
        if got is None or want is None:
            continue
        tolerance = 5e-2 if precision == "bf16" else 1e-3
        error, size = float((got - want).norm()), float(want.norm())
        if not error <= tolerance * size + 1e-6 and math.isfinite(size):
            raise RuntimeError(
                _differs(f"the gradient of {name!r}", f"one {error / size:.2g} away", f"norm {size:.4g}")
            )


def _differs(what: str, got: Any, want: Any) -> str:
    return (
        f"check_steps: {what} of the captured step is {got}, Pyro's on the same random numbers is {want}. Model or "
        "guide depends on something that the graph has frozen: Python-side state, a list or dictionary, a numpy array. "
        "Pass it as a tensor argument; or use pyro.infer.SVI, or CompiledSVI(..., compile=False)."
    )
