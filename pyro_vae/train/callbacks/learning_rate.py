"""Learning rates that change with time."""

from __future__ import annotations

from typing import Any

from pyro.optim.lr_scheduler import PyroLRScheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..resume.learning_rates import schedulers, set_learning_rates
from ..run import Run
from ..schedules import Schedule
from .base import Callback, require_figure, require_name_of_figure

__all__ = ["LearningRate"]


class LearningRate(Callback):
    """Multiply the optimizer's learning rates by a schedule, which is evaluated before every step.

    Works with every ``pyro.optim`` optimizer, also with a learning rate for each parameter, and with this library's.
    Where the optimizer is a scheduler of Pyro's (``pyro.optim.ExponentialLR({...})``), ``LearningRate()`` without a
    schedule takes the scheduler's own step after every epoch. ``pyro.optim.ReduceLROnPlateau`` is given minus
    ``monitor`` in its mode "min" (its default), and ``monitor`` in its mode "max".

    Args:
        schedule: factor as a function of the epochs trained so far, e.g. ``pyro_vae.one_cycle(20)``.
        monitor: name of the figure of the history that ``ReduceLROnPlateau`` looks at; by default ``"validation_elbo"``
            where there are validation data, else ``"train_elbo"``.

    Raises:
        TypeError: ``schedule`` and the optimizer do not go together (at the start).
        ValueError: the history has no figure ``monitor``.

    Example:
        >>> halve_every_ten_epochs = LearningRate(lambda epochs: 0.5 ** (epochs // 10))
    """

    essential = True

    def __init__(self, schedule: Schedule | None = None, *, monitor: str | None = None) -> None:
        if schedule is not None and not callable(schedule):
            raise TypeError(f"schedule: expected a function of the epochs trained so far, got {schedule!r}.")
        self.schedule = schedule
        self.monitor = None if monitor is None else require_name_of_figure(monitor)

    def start(self, run: Run) -> None:
        has_own = isinstance(run.svi.optim, PyroLRScheduler)
        if has_own != (self.schedule is None):
            raise TypeError(
                "schedule: expected a function with a plain optimizer, and none with a pyro.optim scheduler, got "
                f"{'none' if self.schedule is None else 'a function'} with {type(run.svi.optim).__name__}."
            )
        if self.monitor is not None:
            require_figure(self.monitor, run)
        self._set(run)

    def step_end(self, run: Run) -> None:
        self._set(run)

    def epoch_end(self, run: Run) -> None:
        if self.schedule is None:
            for scheduler in schedulers(run.svi.optim):
                if isinstance(scheduler, ReduceLROnPlateau):
                    figure = self._figure(run)
                    scheduler.step(figure if scheduler.mode == "max" else -figure)
                else:
                    scheduler.step()

    def _set(self, run: Run) -> None:
        """Set the learning rates of the coming step."""
        if self.schedule is not None:
            set_learning_rates(run.svi.optim, float(self.schedule(run.time)))

    def _figure(self, run: Run) -> Any:
        row = run.history[-1]
        monitor = self.monitor or ("validation_elbo" if "validation_elbo" in row else "train_elbo")
        if monitor not in row:
            raise ValueError(f"monitor: expected one of {run.history.names}, got {monitor!r}.")
        return row[monitor]
