"""Learning rates that change with time."""

from __future__ import annotations

from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler

from ..resume.optimizer_state import scale_learning_rates
from ..run import Run
from ..schedules import Schedule
from .base import Callback

__all__ = ["LearningRate"]


class LearningRate(Callback):
    """Multiply the optimizer's learning rates by a schedule, which is evaluated before every step.

    Works with every ``pyro.optim`` optimizer, also with a learning rate for each parameter, and with this library's.
    Where the optimizer is a scheduler of Pyro's (``pyro.optim.ExponentialLR({...})``), ``LearningRate()`` without a
    schedule takes the scheduler's own step after every epoch.

    Args:
        schedule: factor as a function of the epochs trained so far, e.g. ``pyro_vae.one_cycle(20)``.

    Raises:
        TypeError: ``schedule`` and the optimizer do not go together (at the start).

    Example:
        >>> halve_every_ten_epochs = LearningRate(lambda epochs: 0.5 ** (epochs // 10))
    """

    essential = True

    def __init__(self, schedule: Schedule | None = None) -> None:
        if schedule is not None and not callable(schedule):
            raise TypeError(f"schedule: expected a function of the epochs trained so far, got {schedule!r}.")
        self.schedule = schedule

    def start(self, run: Run) -> None:
        has_own = isinstance(run.svi.optim, PyroLRScheduler)
        if has_own != (self.schedule is None):
            raise TypeError(
                "schedule: expected a function with a plain optimizer, and none with a pyro.optim scheduler, got "
                f"{'none' if self.schedule is None else 'a function'} with {type(run.svi.optim).__name__}."
            )
        self._set(run)

    def step_end(self, run: Run) -> None:
        self._set(run)

    def epoch_end(self, run: Run) -> None:
        if self.schedule is None and isinstance(run.svi.optim, PyroOptim):
            run.svi.optim.step()

    def _set(self, run: Run) -> None:
        """Set the learning rates of the coming step."""
        if self.schedule is not None:
            scale_learning_rates(run.svi.optim, float(self.schedule(run.time)) * run.learning_rate_factor)
