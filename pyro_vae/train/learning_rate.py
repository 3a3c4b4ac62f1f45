"""Learning rates that change with time."""

from __future__ import annotations

from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler

from .callbacks import Callback
from .optimiser import scale_learning_rates
from .run import Run
from .schedules import Schedule

__all__ = ["LearningRate"]


class LearningRate(Callback):
    """Multiply the optimiser's learning rates by a schedule, anew before every step.

    Works with every ``pyro.optim`` optimiser, those with a learning rate for each parameter too, and with this
    library's. With a scheduler of Pyro's (``pyro.optim.ExponentialLR({...})``) as the optimiser, ``LearningRate()``
    takes the scheduler's own step after every epoch.

    Args:
        schedule: factor as a function of the epochs trained so far, e.g. ``pyro_vae.one_cycle(20)``.

    Raises:
        TypeError: ``schedule`` and the optimiser do not go together (at the start).

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
                "schedule: expected a function with a plain optimiser, and none with a pyro.optim scheduler, got "
                f"{'none' if self.schedule is None else 'a function'} with {type(run.svi.optim).__name__}."
            )
        self._set(run)

    def step_end(self, run: Run) -> None:
        self._set(run)

    def epoch_end(self, run: Run) -> None:
        if self.schedule is None and isinstance(run.svi.optim, PyroOptim):
            run.svi.optim.step()

    def _set(self, run: Run) -> None:
        """For the coming step."""
        if self.schedule is not None:
            scale_learning_rates(run.svi.optim, float(self.schedule(run.time)) * run.learning_rate_factor)
