"""Write a run's figures to files."""

from __future__ import annotations

import csv
import os
from typing import Any

from ..run import Run
from .base import Callback, absolute

__all__ = ["CSVLog", "TensorBoard"]


class CSVLog(Callback):
    """Write the history to a CSV file, one line an epoch, each as soon as the epoch ends.

    Args:
        path: the file; its directory is made. A line is appended after each epoch. At the start of a run, and where a
            new figure appears, the file is written anew, so that a resumed run leaves no line twice.

    Raises:
        OSError: (at the start) the directory cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = absolute(path)
        self._names: list[str] = []

    def start(self, run: Run) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._names = []

    def epoch_end(self, run: Run) -> None:
        if run.history.names == self._names:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._names).writerow(run.history[-1])
            return
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        run.history.to_csv(temporary)
        os.replace(temporary, self.path)
        self._names = run.history.names


class TensorBoard(Callback):
    """Write the history to TensorBoard after every epoch, the epoch on the horizontal axis.

    Args:
        directory: where the event files go.

    Raises:
        ImportError: (at the start) TensorBoard is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = absolute(directory)
        self._writer: Any = None

    def start(self, run: Run) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoard is not installed: pip install 'pyro_vae[tensorboard]'.") from error
        # A killed run may have written later epochs, which this run trains again.
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
