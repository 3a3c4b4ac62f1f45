"""Schedules: functions from epochs trained so far (a real number above 0) to a value, for ``fit(schedules=...)``."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from pyro.nn import PyroModule
from torch import nn

__all__ = ["Schedule", "cyclical", "linear_warmup", "one_cycle", "require_schedules", "values_at"]

Schedule = Callable[[float], float]

_CALLS = (nn.Module.__call__, PyroModule.__call__)  # which hand everything on to ``forward``


def linear_warmup(epochs: float, *, start: float = 0.0, end: float = 1.0) -> Schedule:
    r"""A straight line from ``start`` to ``end``, then constant.

    .. math:: v(t) = \text{start} + (\text{end} - \text{start}) \min(1, t / \text{epochs})

    ``fit`` asks for the value after each step, so that a warm-up from 0 begins just above it (``poutine.scale`` takes
    no 0).

    Args:
        epochs: length of the warm-up; 0 gives the constant ``end``.
        start: value at its beginning.
        end: value at its end.

    Raises:
        ValueError: ``epochs`` is negative.

    Example:
        >>> beta = linear_warmup(10)
        >>> beta(2.5), beta(10), beta(20)
        (0.25, 1.0, 1.0)

    Source:
        Sønderby et al. (2016), Ladder Variational Autoencoders, section 2.3.
    """
    if not epochs >= 0:
        raise ValueError(f"epochs: expected a number of at least 0, got {epochs!r}.")
    return lambda t: end if t >= epochs else start + (end - start) * t / epochs


def cyclical(period: float, *, rise: float = 0.5, start: float = 0.0, end: float = 1.0) -> Schedule:
    """A linear rise over a part of each period, then constant to its end; over and over.

    Args:
        period: length of a cycle in epochs.
        rise: part of the period in which the value rises, in (0, 1].
        start: value just before each rise; the value itself is never exactly this.
        end: value after each rise.

    Raises:
        ValueError: ``period`` is not positive, or ``rise`` not in (0, 1].

    Example:
        >>> beta = cyclical(4)
        >>> beta(1), beta(2), beta(4), beta(5)
        (0.5, 1.0, 1.0, 0.5)

    Source:
        Fu et al. (2019), Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing, equation 6.
    """
    if not period > 0:
        raise ValueError(f"period: expected a number above 0, got {period!r}.")
    if not 0 < rise <= 1:
        raise ValueError(f"rise: expected a number in (0, 1], got {rise!r}.")
    # A whole number of periods is the end of a cycle, not the beginning of the next.
    line = linear_warmup(rise * period, start=start, end=end)

    def value(t: float) -> float:
        time = t % period
        return line(time if time > 1e-9 * period else period)  # rounding leaves a little more than a whole number

    return value


def one_cycle(epochs: float, *, warmup: float = 0.3, start: float = 1 / 25, end: float = 1e-5) -> Schedule:
    r"""Half a cosine wave up to 1, and a longer one down: a factor for ``pyro_vae.LearningRate``.

    Args:
        epochs: length of the cycle; after it the value stays at ``end``.
        warmup: part of the cycle in which the value rises, in (0, 1).
        start: value at the beginning.
        end: value at the end.

    Raises:
        ValueError: ``epochs`` is not positive, or ``warmup`` not in (0, 1).

    Example:
        >>> factor = one_cycle(20)
        >>> round(factor(6), 3), round(factor(20), 3)
        (1.0, 0.0)

    Source:
        Smith and Topin (2019), Super-convergence: very fast training of neural networks using large learning rates.
    """
    if not epochs > 0:
        raise ValueError(f"epochs: expected a number above 0, got {epochs!r}.")
    if not 0 < warmup < 1:
        raise ValueError(f"warmup: expected a number in (0, 1), got {warmup!r}.")

    def factor(t: float) -> float:
        t = min(t / epochs, 1.0)
        low, part = (start, t / warmup) if t < warmup else (end, (1 - t) / (1 - warmup))
        return low + (1 - low) * (1 - math.cos(math.pi * part)) / 2

    return factor


def require_schedules(schedules: Any, svi: Any) -> None:
    """Refuse what does not name keyword arguments of model and guide with a function for each."""
    if not isinstance(schedules, Mapping):
        raise TypeError(
            f"schedules: expected a mapping of keyword arguments of the model to functions of time, got {schedules!r}. "
            "Name the argument, e.g. schedules={'beta': pyro_vae.linear_warmup(10)}."
        )
    for name, schedule in schedules.items():
        if not isinstance(name, str):
            raise TypeError(f"schedules: expected names of keyword arguments, got {name!r}. Give strings, e.g. 'beta'.")
        if not callable(schedule):
            raise TypeError(
                f"schedules[{name!r}]: expected a function of the epochs trained so far, got {schedule!r}. "
                f"Give one, e.g. pyro_vae.linear_warmup(10), or for a constant lambda t: {schedule!r}."
            )
        for part in ("model", "guide"):
            _require_argument(name, part, getattr(svi, part))


def _require_argument(name: str, part: str, function: Any) -> None:
    """Refuse a schedule whose value the model or the guide does not take."""
    called_by_torch = isinstance(function, nn.Module) and type(function).__call__ in _CALLS
    try:
        signature = inspect.signature(function.forward if called_by_torch else function)
    except (TypeError, ValueError):  # a function without a signature
        return
    try:
        signature.bind_partial(**{name: 1.0})
    except TypeError as error:
        arguments = ", ".join(signature.parameters)
        raise TypeError(
            f"schedules[{name!r}]: expected the name of a keyword argument of the model and the guide, got {name!r}, "
            f"which the {part} does not take; its arguments are ({arguments}). Name one of them, or add it."
        ) from error


def values_at(schedules: Mapping[str, Schedule], time: float) -> dict[str, float]:
    """The value of every schedule after ``time`` epochs."""
    values: dict[str, float] = {}
    for name, schedule in schedules.items():
        value = schedule(time)
        try:
            values[name] = float(value)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"schedules[{name!r}]: expected a function from epochs to a number, got {value!r} at {time:g}. "
                "Return a number, and call what makes a schedule: linear_warmup(10), not linear_warmup."
            ) from error
    return values
