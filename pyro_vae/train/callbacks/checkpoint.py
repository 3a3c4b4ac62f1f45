"""Write checkpoints as training goes."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

from ..._checks import require_number, require_positive_int
from ..._warn import warn
from ..resume.checkpoint_file import checkpoints, step_of, write
from ..resume.plain import plain
from ..run import Run
from .base import Callback, absolute, require_figure, require_name_of_figure

__all__ = ["Checkpoint"]


class Checkpoint(Callback):
    """Save a run as it goes, so that it can be killed at any instant and resumed as if nothing had happened.

    ``fit(..., resume=directory)`` goes on from the last whole checkpoint, to the bit on a CPU: parameters, buffers,
    optimizer, schedules, history, the position in the epoch and every random generator. Files: ``step-NNNNNNNNNN.pt``
    (the last ones) and ``best.pt``, which hold tensors and plain values only; ``pyro_vae.train.read_checkpoint(path)``
    reads one, e.g. ``vae.load_state_dict(read_checkpoint("runs/best.pt")["modules"][0])``.

    With a ``Checkpoint`` among the callbacks, the first SIGINT (Ctrl-C), SIGTERM, SIGHUP or SIGUSR1 finishes the
    step, saves and ends the process with exit code 128 plus its number; a second one ends it at once.

    Args:
        directory: where the files go; it is made.
        every: seconds of training between two checkpoints: what a crash may cost at most. 0 saves after every step.
            One is always written at the end, early or not, and at a polite stop.
        keep: how many of the last checkpoints to keep.
        monitor: figure of the history (higher is better) whose best epoch ``best.pt`` is; by default
            ``"validation_elbo"`` where there are validation data, else none. The best epoch is kept in memory and
            written with the next checkpoint.
        keep_best: whether to keep ``best.pt``, for which the state is copied after each epoch that is the best so far.
        on_error: what happens where a checkpoint cannot be written (disk full, read-only): ``"continue"`` warns and
            trains on, ``"raise"`` ends the run. Earlier checkpoints stay whole.

    Raises:
        ValueError: a bad argument; (at the start) the directory holds the checkpoints of another run, or another run
            writes there now.
        TypeError: (at the start) a callback's state, or an option of the optimizer, is no plain value.
        OSError: (at the start) the directory cannot be written.

    Example:
        >>> checkpoint = Checkpoint("runs/mnist", every=300)  # fit(..., callbacks=[checkpoint], resume="runs/mnist")
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        every: float = 60.0,
        keep: int = 2,
        monitor: str | None = None,
        keep_best: bool = True,
        on_error: str = "continue",
    ) -> None:
        if on_error not in ("continue", "raise"):
            raise ValueError(f'on_error: expected "continue" or "raise", got {on_error!r}.')
        self.directory = absolute(directory)
        self.every = every if every == math.inf else require_number("every", every, low=0)
        self.keep = require_positive_int("keep", keep)
        self.monitor = None if monitor is None else require_name_of_figure(monitor)
        self.keep_best = keep_best
        self.on_error = on_error
        self.essential = True
        self.best = -math.inf
        self._best_state: dict[str, Any] | None = None
        self._saved_at = (-1, -1)
        self._saved_when = time.monotonic()

    def start(self, run: Run) -> None:
        if self.monitor is not None:
            require_figure(self.monitor, run)
        _make_writable(self.directory)
        plain(run.take_state(), "the state of the run")  # refuses what could not be written
        for stale in self.directory.glob(".*.pt.*.tmp"):  # of a write that was killed
            stale.unlink()
        existing = checkpoints(self.directory)
        if run.resumed_from is None or run.resumed_from.parent.resolve() != self.directory.resolve():
            if existing:
                raise ValueError(
                    f"directory: expected one without checkpoints for a new run, {self.directory} holds "
                    f"{existing[-1].name}. Resume that run (resume={str(self.directory)!r}), or give another directory."
                )
            self.best = -math.inf
        for path in existing:
            # It is damaged, or of a later step, which this run trains again: keep it under another name.
            if step_of(path) > run.step:
                path.rename(path.with_name(path.name + ".old"))
        self._best_state = None
        self._saved_at = (run.epoch, run.step) if run.resumed_from is not None else (-1, -1)
        self._saved_when = time.monotonic()

    def step_end(self, run: Run) -> None:
        if time.monotonic() - self._saved_when >= self.every:
            self.save(run)

    def epoch_end(self, run: Run) -> None:
        monitor = self.monitor or "validation_elbo"
        figure = run.history[-1].get(monitor, math.nan)
        if self.monitor is not None and monitor not in run.history[-1]:
            raise ValueError(f"monitor: expected one of {run.history.names}, got {monitor!r}.")
        if self.keep_best and figure > self.best:
            self.best = figure
            self._best_state = run.take_state()
        if time.monotonic() - self._saved_when >= self.every:
            self.save(run)

    def end(self, run: Run) -> None:
        # After an exception the parameters may be half updated; the last checkpoint is the one to go on from.
        if run.status != "failed" and self._saved_at != (run.epoch, run.step):
            self.save(run)

    def save(self, run: Run) -> None:
        """Write a checkpoint now, unless a loss so far was not finite."""
        state = run.take_state()
        if state is None:
            return
        path = self.directory / f"step-{run.step:010d}.pt"
        try:
            if self._best_state is not None:
                write(self.directory / "best.pt", self._best_state)
                self._best_state = None
            write(path, state)
            for old in checkpoints(self.directory)[: -self.keep]:
                old.unlink()
        except OSError as error:
            if self.on_error == "raise":
                raise
            whole = checkpoints(self.directory)
            warn(
                f"the checkpoint of step {run.step} could not be written to {self.directory} ({error}). "
                f"{f'{whole[-1].name} is whole' if whole else 'There is none yet'}. Training goes on.",
                RuntimeWarning,
            )
        else:
            self._saved_at = (run.epoch, run.step)
        self._saved_when = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]


def _make_writable(directory: Path) -> None:
    """Make a directory, and raise an ``OSError`` where no file can be written there."""
    directory.mkdir(parents=True, exist_ok=True)
    probe = directory / f".writable.{os.getpid()}"
    probe.write_bytes(b"")
    probe.unlink()
