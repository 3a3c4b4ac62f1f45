"""The interface of callbacks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..run import Run

__all__ = ["Callback", "absolute", "require_figure"]


class Callback:
    """Something to do at moments of a run: override the methods that you need.

    A plain function ``f(run)`` given to ``fit`` is called where ``epoch_end`` is.

    Order: as given to ``fit``, ``pyro_vae.Checkpoint`` after all others, so that it saves what they know; at ``end``
    the reverse. Exceptions: one in ``start`` ends the run before it began. A later one is warned of, once for each
    callback, and training goes on: a failing logger does not lose the run. A callback with ``essential = True`` ends
    the run with its exception. To end training from a callback, set ``run.stopping = True``. Where several processes
    train together, essential callbacks are called in each, all others (and ``Checkpoint``) in the first one alone.

    Attributes:
        essential: whether training cannot do without it.

    Example:
        >>> class Announce(Callback):
        ...     def epoch_end(self, run):
        ...         print(f"{run.epoch} of {run.epochs}: {run.history[-1]['train_elbo']:.1f} nats")
    """

    essential = False

    def start(self, run: Run) -> None:
        """Prepare, before the first step (after a resume: before the next one). ``run.parameters`` exist."""

    def step_end(self, run: Run) -> None:
        """Act after an optimizer step."""

    def epoch_end(self, run: Run) -> None:
        """Act after an epoch, whose figures are in ``run.history``."""

    def end(self, run: Run) -> None:
        """Act once, at the end: ``run.status`` is "finished", "interrupted" or "failed"."""

    def state_dict(self) -> dict[str, Any]:
        """Return what this callback needs to go on after a resume: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""


def absolute(place: str | os.PathLike[str]) -> Path:
    """Return the path that a place has now: with the home directory for ``~``, and the same after an ``os.chdir``."""
    if not isinstance(place, (str, os.PathLike)):
        raise TypeError(f"directory: expected a path, got {place!r}. Give a folder, such as 'runs/mnist'.")
    return Path(place).expanduser().absolute()


def require_name_of_figure(monitor: Any) -> str:
    """Return ``monitor``; refuse what is no name."""
    if not isinstance(monitor, str):
        raise TypeError(
            f"monitor: expected the name of a figure of the history, got {monitor!r}. Give 'train_elbo', say."
        )
    return monitor


def require_figure(monitor: str, run: Run) -> None:
    """Refuse, before training, to monitor a validation figure where there are no validation data."""
    if monitor.startswith("validation") and run.validation is None:
        raise ValueError(f"monitor: {monitor!r} needs validation data. Give fit(validation=...) or another figure.")
