"""What is not finite in a step: arguments, parameters, sample sites, gradients."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from . import generators

__all__ = ["CURES", "bad_data", "refused", "what_is_not_finite"]

CURES = (
    "Likely cures: a lower learning rate or a warm-up; clipped gradients (pyro_vae.Adam(..., clip_norm=10.0), "
    "pyro.optim.ClippedAdam); scales bounded away from 0; data within the likelihood's support; float32 in place of "
    "half precision; fit(..., on_nonfinite='restore')."
)


def bad_data(args: tuple[Any, ...]) -> str | None:
    """What is to be said against arguments that hold NaN or infinity; ``None`` if none does."""
    bad = [f"{_bad(arg)} of argument {position + 1}" for position, arg in enumerate(args) if _bad(arg)]
    return f"expected finite data, got {'; '.join(bad)}. Remove or impute values that are missing." if bad else None


def what_is_not_finite(
    svi: Any,
    args: tuple[Any, ...],
    keywords: dict[str, Any],
    parameters: dict[str, Tensor],
    generator: Tensor | None,
) -> list[str]:
    """Run a step's model and guide again, on the same batch with the same noise, and tell what is not finite.

    Args:
        svi: with ``model`` and ``guide``.
        args: the step's positional arguments.
        keywords: its keyword arguments.
        parameters: all parameters by name, with their values before the step.
        generator: the state of torch's generator before the step, where it is known.

    Returns:
        A line for each sample site, parameter and gradient that is not finite.
    """
    lines = [f"parameter {name!r}: {_bad(value)}" for name, value in parameters.items() if _bad(value)]
    with _again(generator), torch.no_grad():
        lines += _sites(svi, args, keywords)
    with _again(generator):
        lines += _gradients(svi, args, keywords, parameters)
    return lines


def refused(svi: Any, args: tuple[Any, ...], keywords: dict[str, Any], generator: Tensor | None) -> str | None:
    """What Pyro's validation, which a compiled step runs without, says against a value; ``None`` if nothing."""
    with _again(generator), torch.no_grad(), pyro.validation_enabled(True):
        try:
            guide_trace = poutine.trace(svi.guide).get_trace(*args, **keywords)
            model_trace = poutine.trace(poutine.replay(svi.model, trace=guide_trace)).get_trace(*args, **keywords)
            model_trace.compute_log_prob()
        except ValueError as error:
            # About a distribution's own parameter, NaN say: not the data's fault.
            return None if "Expected parameter" in str(error) else str(error)
    return None


@contextmanager
def _again(generator: Tensor | None) -> Iterator[None]:
    with generators.preserved(), pyro.validation_enabled(False):
        if generator is not None:
            torch.set_rng_state(generator)
        yield


def _sites(svi: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Iterator[str]:
    try:
        guide_trace = poutine.trace(svi.guide).get_trace(*args, **keywords)
        model_trace = poutine.trace(poutine.replay(svi.model, trace=guide_trace)).get_trace(*args, **keywords)
    except Exception as error:  # the step itself went wrong, so this may well
        yield f"(model and guide cannot be run again: {type(error).__name__}: {error})"
        return
    for role, trace in (("guide", guide_trace), ("model", model_trace)):
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
                continue
            if role == "guide" and _bad(site["value"]):
                yield f"value of site {name!r}: {_bad(site['value'])}"
            try:
                log_prob = site["fn"].log_prob(site["value"])
            except Exception as error:
                yield f"log-density of site {name!r} in the {role}: none ({error})"
                continue
            if _bad(log_prob):
                yield f"log-density of site {name!r} in the {role}: {_bad(log_prob)}"


def _gradients(svi: Any, args: tuple[Any, ...], keywords: dict[str, Any], parameters: dict[str, Tensor]) -> list[str]:
    loss_and_grads = getattr(svi, "loss_and_grads", None)
    if loss_and_grads is None:
        return []
    kept = {name: parameter.grad for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    try:
        # Unwrapped: without what acts between gradients and optimiser, which refused this step.
        inspect.unwrap(loss_and_grads)(svi.model, svi.guide, *args, **keywords)
        return [f"gradient of {name!r}: {_bad(value.grad)}" for name, value in parameters.items() if _bad(value.grad)]
    except Exception:
        return []
    finally:
        for name, parameter in parameters.items():
            parameter.grad = kept[name]


def _bad(value: Any) -> str:
    """What is not finite in a tensor, in words; empty where all is."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
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
