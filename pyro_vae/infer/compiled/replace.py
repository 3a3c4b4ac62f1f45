"""A captured graph's compiled program takes its place, once both were seen to agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ..._warn import warn
from .captured_step import CapturedStep
from .check import difference
from .errors import CaptureWarning
from .losses import numbers
from .program import Call
from .undo import undone

__all__ = ["compile_step"]

_DRAWS = 3  # random numbers on which they may agree: a rounding can move a discrete draw, but hardly in each of them


def compile_step(step: CapturedStep, call: Call) -> None:
    """Compile a captured step for inputs like this call's, and keep the program unless it computes something else.

    A compiler is a large program, and has its own mistakes. What it made is compared with the graph on this call's
    inputs and the same random numbers, which is undone; where they differ, the graph stays, and a warning says so.
    """
    assert step.compiler is not None
    run, step.compiler = step.compiler(call.tensors), None
    if isinstance(run, fx.GraphModule):  # no compiler could be had, which was said
        return
    change = _difference(step, run, call)
    if change is None:
        step.run = run
    else:
        warn(
            f"the compiled step does not compute what was captured ({change}); the captured graph runs uncompiled. "
            "This is a mistake of torch's compiler, or of how it is used here: please report it with the model.",
            CaptureWarning,
        )


def _difference(step: CapturedStep, run: Callable[..., Any], call: Call) -> str | None:
    names = {id(p): name for name, p in step.traced.params.items()}

    def results(function: Callable[..., Any]) -> tuple[list[float], dict[str, Tensor]]:
        out = step.outputs_undone(function, call.tensors)
        grads = {names[id(p)]: g for p, g in zip(step.traced.trained, out.grads, strict=True)}
        return [numbers(part) for part in out.losses], grads

    change: str | None = None
    with undone(step.traced.params.values()):
        for _ in range(_DRAWS):
            (got, grads), (want, want_grads) = results(run), results(step.graph)
            change = difference(got, want, grads, want_grads, 5e-2 if call.program.precision == "bf16" else 1e-3)
            if change is None:
                return None
            torch.rand(())  # and now with other ones
    return change
