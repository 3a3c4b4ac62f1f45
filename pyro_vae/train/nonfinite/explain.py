"""Explain a step that was not finite: which data, parameters, sample sites and gradients are not."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from ..resume import generators
from .detect import NotFinite

__all__ = ["StepInputs", "cause_of", "explanation", "nonfinite_data"]

_CURES = (
    "Likely cures: a lower learning rate or a warm-up; clipped gradients (pyro_vae.Adam(..., clip_norm=10.0), "
    "pyro.optim.ClippedAdam); scales bounded away from 0; data within the likelihood's support; float32 in place of "
    "half precision; fit(..., on_nonfinite='restore')."
)
_MISSING = "Remove or impute missing values, or build VAE(..., missing=True), to which NaN means missing."


class StepInputs(NamedTuple):
    """What a step worked on, so that it can be run again."""

    args: tuple[Any, ...]  # positional arguments of model and guide
    kwargs: dict[str, Any]  # their keyword arguments
    generator: Tensor | None  # state of torch's generator before the step, where it is known


def cause_of(
    error: ValueError, svi: Any, inputs: StepInputs, parameters: dict[str, Tensor], where: str, batch: int
) -> Exception | None:
    """Return the error to raise in place of a ``ValueError`` of a step.

    Args:
        error: what the step raised.
        svi: with ``model`` and ``guide``.
        inputs: what the step worked on.
        parameters: all parameters by name.
        where: the step, in words.
        batch: number of the batch in its epoch, from 0.

    Returns:
        A ``ValueError`` about NaN or infinity in the data; ``NotFinite`` where a distribution's parameter was not
        finite; None where the error speaks for itself.
    """
    reason = nonfinite_data(inputs.args, _nan_is_missing(svi, inputs))
    if reason is not None:
        return ValueError(reason)
    if "found invalid values" in str(error) and _nonfinite_parts(svi, inputs, parameters):
        return NotFinite(f"a distribution's parameter is not finite at {where}", batch)
    return None


def explanation(
    error: NotFinite, svi: Any, inputs: StepInputs | None, parameters: dict[str, Tensor], position: str
) -> Exception:
    """Return the error that ends the run.

    Args:
        error: what was noticed.
        svi: with ``model`` and ``guide``.
        inputs: what the step worked on; None where that is no longer known.
        parameters: all parameters by name, with their values before the step's update.
        position: the batch of that step, in words.

    Returns:
        A ``ValueError`` for bad data, else a ``FloatingPointError`` that lists what is not finite.
    """
    if error.applied:
        return FloatingPointError(f"{error}: the last update, or a callback, made it so. {_CURES}")
    if inputs is None:
        return FloatingPointError(f"{error}; its update was not applied. {_CURES}")
    reason = nonfinite_data(inputs.args, _nan_is_missing(svi, inputs))
    found = [] if reason else _nonfinite_parts(svi, inputs, parameters)
    if reason is None and not any("parameter" in line for line in found):
        reason = _refusal(svi, inputs)
    if reason is not None:
        return ValueError(f"{reason}\n(in train, {position}, counted from 1)")
    lines = found or ["nothing: run again by Pyro, the same step is finite"]
    return FloatingPointError(
        "\n".join([f"{error}; its update was not applied. Not finite:", *(f"  {line}" for line in lines), _CURES])
    )


def nonfinite_data(args: tuple[Any, ...], nan_is_missing: bool = False) -> str | None:
    """Return an error message about arguments that hold NaN or infinity; None if none does.

    Args:
        args: positional arguments of model and guide.
        nan_is_missing: whether NaN is no fault.
    """
    values = [arg.nan_to_num(0.0, math.inf, -math.inf) if nan_is_missing and _is_float(arg) else arg for arg in args]
    found = [f"{_describe(arg)} of argument {position + 1}" for position, arg in enumerate(values) if _describe(arg)]
    return f"expected finite data, got {'; '.join(found)}. {_MISSING}" if found else None


def _nan_is_missing(svi: Any, inputs: StepInputs) -> bool:
    """Whether NaN in the data means missing: there is a mask, or the model is a method of a story that says so."""
    story = getattr(svi.model, "__self__", None)
    return inputs.kwargs.get("mask") is not None or bool(getattr(story, "missing", False))


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _nonfinite_parts(svi: Any, inputs: StepInputs, parameters: dict[str, Tensor]) -> list[str]:
    """Run a step again with the same noise; return a line for each parameter, site and gradient that is not finite."""
    lines = [f"parameter {name!r}: {_describe(value)}" for name, value in parameters.items() if _describe(value)]
    with _same_step_again(inputs.generator), torch.no_grad():
        lines += _sites(svi, inputs)
    with _same_step_again(inputs.generator):
        lines += _gradients(svi, inputs, parameters)
    return lines


def _refusal(svi: Any, inputs: StepInputs) -> str | None:
    """Return what Pyro's validation, which a compiled step does not run, refuses in the data; None if nothing."""
    with _same_step_again(inputs.generator), torch.no_grad(), pyro.validation_enabled(True):
        try:
            _, model_trace = _traces(svi, inputs)
            model_trace.compute_log_prob()
        except ValueError as error:
            # "Expected parameter": a distribution's own parameter is invalid, and not the data.
            return None if "Expected parameter" in str(error) else str(error)
    return None


@contextmanager
def _same_step_again(generator: Tensor | None) -> Iterator[None]:
    with generators.preserved(), pyro.validation_enabled(False):
        if generator is not None:
            torch.set_rng_state(generator)
        yield


def _traces(svi: Any, inputs: StepInputs) -> tuple[Any, Any]:
    """Return the traces of the guide and of the model replayed against it."""
    args, kwargs, _ = inputs
    guide_trace = poutine.trace(svi.guide).get_trace(*args, **kwargs)
    return guide_trace, poutine.trace(poutine.replay(svi.model, trace=guide_trace)).get_trace(*args, **kwargs)


def _sites(svi: Any, inputs: StepInputs) -> Iterator[str]:
    try:
        guide_trace, model_trace = _traces(svi, inputs)
    except Exception as error:
        yield f"(model and guide cannot be run again: {type(error).__name__}: {error})"
        return
    for role, trace in (("guide", guide_trace), ("model", model_trace)):
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
                continue
            if role == "guide" and _describe(site["value"]):
                yield f"value of site {name!r}: {_describe(site['value'])}"
            try:
                log_prob = site["fn"].log_prob(site["value"])
            except Exception as error:
                yield f"log-density of site {name!r} in the {role}: none ({error})"
                continue
            if _describe(log_prob):
                yield f"log-density of site {name!r} in the {role}: {_describe(log_prob)}"


def _gradients(svi: Any, inputs: StepInputs, parameters: dict[str, Tensor]) -> list[str]:
    loss_and_grads = getattr(svi, "loss_and_grads", None)
    if loss_and_grads is None:
        return []
    before = {name: parameter.grad for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    try:
        # Unwrapped: ``before_update`` may have wrapped it, and would refuse this step again.
        inspect.unwrap(loss_and_grads)(svi.model, svi.guide, *inputs.args, **inputs.kwargs)
        return [
            f"gradient of {name!r}: {_describe(value.grad)}"
            for name, value in parameters.items()
            if _describe(value.grad)
        ]
    except Exception:
        return []
    finally:
        for name, parameter in parameters.items():
            parameter.grad = before[name]


def _describe(value: Any) -> str:
    """Describe what is not finite in a tensor; return the empty string where all is finite."""
    if not _is_float(value):
        return ""
    value = value.detach()
    finite = value.isfinite()
    if bool(finite.all()):
        return ""
    kinds = [name for name, found in (("NaN", value.isnan()), ("infinity", value.isinf())) if bool(found.any())]
    text = f"{' and '.join(kinds)} in {int((~finite).sum())} of {value.numel()} elements"
    if value.ndim:
        rows = (~finite).flatten(1).any(1) if value.ndim > 1 else ~finite
        which = rows.nonzero().flatten().tolist()
        text += f" (rows {', '.join(map(str, which[:8]))}{', ...' if len(which) > 8 else ''})"
    return text
