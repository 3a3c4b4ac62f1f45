"""Stop when validation no longer improves."""

from __future__ import annotations

import math
from typing import Any

from ..._checks import require_number, require_positive_int
from ..parameters import copy_of_parameters, set_parameters
from ..run import Run
from .base import Callback, require_figure, require_name_of_figure

__all__ = ["EarlyStopping"]


class EarlyStopping(Callback):
    """Stop when a figure of the history has not risen for some epochs, and put the best epoch's parameters back.

    They are put back at the end also where all epochs were trained, but not after a signal stopped the run, since then
    it can be resumed.

    Args:
        monitor: name of a figure in the history; higher is better.
        patience: how many epochs in a row may pass without a rise.
        min_delta: a rise counts if it is more than this, in the figure's unit (nats per datum for ELBOs).
        restore_best: whether to put the parameters of the best epoch back.

    Attributes:
        best: the best figure so far.
        best_epoch: the epoch (from 1) that had it; 0 before the first.

    Raises:
        ValueError: ``patience`` is not a positive integer, ``min_delta`` is negative, or (at the start, and after the
            first epoch) the history has no such figure.

    Example:
        >>> stopping = EarlyStopping(patience=5, min_delta=0.01)  # fit(..., validation=valid, callbacks=[stopping])

    Source:
        L. Prechelt (1998), Early stopping - but when?, section 2.
    """

    essential = True

    def __init__(
        self,
        monitor: str = "validation_elbo",
        *,
        patience: int = 10,
        min_delta: float = 0.0,
        restore_best: bool = True,
    ) -> None:
        self.monitor = require_name_of_figure(monitor)
        self.patience = require_positive_int("patience", patience)
        self.min_delta = require_number("min_delta", min_delta, low=0)
        self.restore_best = restore_best
        self._reset()

    def _reset(self) -> None:
        self.best = -math.inf
        self.best_epoch = 0
        self._waited = 0
        self._best_parameters: dict[str, Any] | None = None

    def start(self, run: Run) -> None:
        require_figure(self.monitor, run)
        if run.epoch == 0 and run.batch == 0:
            self._reset()  # the same object may serve a second fit
        run.stopping = run.stopping or self._waited >= self.patience

    def epoch_end(self, run: Run) -> None:
        figure = run.history[-1].get(self.monitor)
        if figure is None:
            raise ValueError(f"monitor: expected one of {run.history.names}, got {self.monitor!r}.")
        if figure > self.best + self.min_delta:  # a NaN is no rise
            self.best, self.best_epoch, self._waited = figure, run.epoch, 0
            self._best_parameters = copy_of_parameters(run.parameters, run.modules) if self.restore_best else None
        else:
            self._waited += 1
            run.stopping = run.stopping or self._waited >= self.patience

    def end(self, run: Run) -> None:
        if run.status == "finished" and self._best_parameters is not None:
            set_parameters(self._best_parameters, run.parameters, run.modules)

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "waited": self._waited,
            "best_parameters": self._best_parameters,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_epoch, self._waited = state["best"], state["best_epoch"], state["waited"]
        self._best_parameters = state["best_parameters"]
