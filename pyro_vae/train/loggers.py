"""Where a run's figures and pictures go."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .._checks import require_positive_int
from .callbacks import Callback
from .generators import same_noise
from .parts import evaluating
from .run import Run

__all__ = ["CSVLog", "SamplePictures", "TensorBoard"]


class CSVLog(Callback):
    """Write the history to a CSV file after every epoch, one line an epoch.

    Args:
        path: the file; its directory is made. It is written whole each time, so that a resumed run leaves no line
            twice.

    Raises:
        OSError: (at the start) the directory cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def start(self, run: Run) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def epoch_end(self, run: Run) -> None:
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        run.history.to_csv(temporary)
        os.replace(temporary, self.path)


class TensorBoard(Callback):
    """Write the history to TensorBoard after every epoch, the epoch on the horizontal axis.

    Args:
        directory: where the event files go.

    Raises:
        ImportError: (at the start) TensorBoard is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self._writer: Any = None

    def start(self, run: Run) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoard is not installed: pip install 'pyro_vae[tensorboard]'.") from error
        # What a killed run wrote of later epochs is to be written anew.
        self._writer = SummaryWriter(str(self.directory), purge_step=run.epoch + 1 if run.epoch else None)

    def epoch_end(self, run: Run) -> None:
        row = run.history[-1]
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, global_step=int(row["epoch"]))
        self._writer.flush()

    def end(self, run: Run) -> None:
        if self._writer is not None:
            self._writer.close()


class SamplePictures(Callback):
    """Save a picture every few epochs, ``epoch-0010.png`` and so on: the same noise each time, training undisturbed.

    Args:
        directory: where the pictures go; it is made.
        draw: a function without arguments that returns a ``matplotlib`` figure, e.g.
            ``lambda: pyro_vae.plots.samples(vae)``; it runs in eval mode and without gradients.
        every: epochs from one picture to the next; the last epoch has one too.

    Raises:
        ValueError: ``every`` is not a positive integer.
        OSError: (at the start) the directory cannot be made.
    """

    def __init__(self, directory: str | os.PathLike[str], draw: Callable[[], Any], *, every: int = 1) -> None:
        self.directory = Path(directory)
        self.draw = draw
        self.every = require_positive_int("every", every)

    def start(self, run: Run) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)

    def epoch_end(self, run: Run) -> None:
        if run.epoch % self.every and run.epoch < run.epochs:
            return
        with evaluating(run.modules), same_noise(), torch.no_grad():
            figure = self.draw()
        getattr(figure, "figure", figure).savefig(self.directory / f"epoch-{run.epoch:04d}.png")
