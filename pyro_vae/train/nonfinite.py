"""What happens when a step is not finite: an error that says why, or a return to where all was well."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from .batches import arguments
from .diagnosis import CURES, bad_data, refused, what_is_not_finite
from .guard import NotFinite, all_finite
from .optimiser import param_groups
from .state import begin_from, put_back

if TYPE_CHECKING:
    from .run import Run

__all__ = ["explained", "refuse", "restore", "understood"]

_TRIES = 3


def refuse(run: Run, loss: Any) -> None:
    """Stop a step, before the optimiser sees it, whose loss or gradients are not finite."""
    if not all_finite(loss, run.parameters):
        for parameter in run.parameters.values():
            parameter.grad = None
        raise NotFinite(f"the loss ({loss:.6g}) or a gradient is not finite at {run.where}", run.batch)


def understood(run: Run, error: ValueError) -> Exception | None:
    """What lies behind a ``ValueError`` in a step: bad data, numbers that ran off, or (``None``) neither."""
    if run.current is None:
        return None
    args, keywords, generator = run.current
    reason = bad_data(args)
    if reason is not None:
        return ValueError(reason)
    if "found invalid values" in str(error) and what_is_not_finite(run.svi, args, keywords, run.parameters, generator):
        return NotFinite(f"a distribution's parameter is not finite at {run.where}", run.batch)
    return None


def restore(run: Run, error: NotFinite, allowed: bool) -> None:
    """Go back to the last snapshot with half the learning rate, or raise what explains the error."""
    reason = explained(run, error)
    if not allowed or run.snapshot is None or isinstance(reason, ValueError):  # bad data would only come again
        raise reason from error
    if run.restores >= _TRIES:
        raise FloatingPointError(f"{reason}\nGiven up after {_TRIES} restores.") from error
    run.restores += 1
    factor = run.learning_rate_factor / 2
    begin_from(run, run.snapshot)
    put_back(run, run.snapshot)
    for group in param_groups(run.svi.optim):
        group["lr"] *= factor / run.learning_rate_factor
    run.learning_rate_factor = factor
    run.stopping = False
    warnings.warn(
        f"{error}. Back to {run.where} with {factor:g} times the learning rate (restore {run.restores} of {_TRIES}).",
        RuntimeWarning,
        stacklevel=4,
    )


def explained(run: Run, error: NotFinite) -> Exception:
    """The error to raise: a ``ValueError`` for bad data, else a ``FloatingPointError`` that says what is not finite."""
    at_hand = error.batch in (None, run.batch)
    if at_hand and run.current is not None:
        args, keywords, generator = run.current
    elif hasattr(run.train, "iterate"):  # found some steps later: fetch that batch again
        batch = next(run.train.iterate(run.first_epoch + run.epoch, error.batch))
        args, generator = arguments(batch, run.transform), None
        keywords = run.keywords(args)
    else:
        return FloatingPointError(f"{error}; its update was not applied. {CURES}")
    position = f"epoch {run.epoch + 1}, batch {(run.batch if error.batch is None else error.batch) + 1}"
    reason = bad_data(args)
    found = [] if reason else what_is_not_finite(run.svi, args, keywords, run.parameters, generator)
    if reason is None and not any("parameter" in line for line in found):
        reason = refused(run.svi, args, keywords, generator)
    if reason is not None:
        return ValueError(f"{reason}\n(in train, {position}, counted from 1)")
    lines = found or ["nothing any more: run again by Pyro itself, the same step is finite"]
    return FloatingPointError(
        "\n".join([f"{error}; its update was not applied. Not finite:", *(f"  {line}" for line in lines), CURES])
    )
