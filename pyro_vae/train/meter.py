"""The sums of an epoch: of its losses, its data and its seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .nonfinite.detect import NotFinite

__all__ = ["Meter"]

_READ_EVERY = 100  # steps whose losses are read together from an accelerator


class _Unread(NamedTuple):
    """A loss that is still on the accelerator."""

    loss: Tensor
    weight: float
    step: int
    epoch: int
    batch: int


class Meter:
    """Sums over the current epoch.

    A loss on the CPU is added at once. Reading one from an accelerator waits for the device, so these are kept there
    and read many at a time.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin an epoch."""
        self._loss, self._rows, self._seconds = 0.0, 0, 0.0
        self._unread: list[_Unread] = []
        self._failure: NotFinite | None = None
        self.start_clock()

    def start_clock(self) -> None:
        """Count seconds from now on."""
        self._started = time.perf_counter()

    def add(self, loss: Any, rows: int, weight: float, step: int, epoch: int, batch: int) -> None:
        """Add a step.

        Args:
            loss: minus the bound of the batch in nats; a number, a tensor, or a tuple whose first item is one.
            rows: number of data in the batch.
            weight: factor that makes ``loss`` a sum over the data of the batch.
            step: number of steps before this one.
            epoch: number of epochs before this one.
            batch: number of batches of this epoch before this one.

        Raises:
            NotFinite: this loss, or one that was read with it, is not finite.
        """
        loss = loss[0] if isinstance(loss, tuple) else loss
        if isinstance(loss, Tensor) and loss.device.type != "cpu":
            self._unread.append(_Unread(loss.detach().clone(), weight, step, epoch, batch))
            if len(self._unread) >= _READ_EVERY:
                self.read()
        else:
            self._add(float(loss), weight, step, epoch, batch)
        self.require_finite()
        self._rows += rows

    def read(self) -> bool:
        """Read the losses that are still on an accelerator; return whether all losses so far were finite."""
        unread, self._unread = self._unread, []
        if unread:
            values = torch.stack([item.loss.double() for item in unread]).tolist()
            for value, (_, weight, step, epoch, batch) in zip(values, unread, strict=True):
                self._add(value, weight, step, epoch, batch)
        return self._failure is None

    def require_finite(self) -> None:
        """Raise ``NotFinite`` where a loss that was read is not finite."""
        if self._failure is not None:
            raise self._failure

    @property
    def elbo(self) -> float:
        """The objective of the epoch so far, in nats per datum; NaN before the first step."""
        self.read()
        return -self._loss / self._rows if self._rows else math.nan

    @property
    def rows(self) -> int:
        """Number of data in the batches of the epoch so far."""
        return self._rows

    @property
    def seconds(self) -> float:
        """Seconds that the epoch took so far."""
        return self._seconds + time.perf_counter() - self._started

    def state_dict(self) -> dict[str, float]:
        """Return the sums so far."""
        self.read()
        return {"loss": self._loss, "rows": self._rows, "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from the sums that ``state_dict`` returned."""
        self.reset()
        self._loss, self._rows, self._seconds = state["loss"], int(state["rows"]), state["seconds"]

    def _add(self, loss: float, weight: float, step: int, epoch: int, batch: int) -> None:
        if math.isfinite(loss):
            self._loss += loss * weight
        elif self._failure is None:
            where = f"step {step + 1} (epoch {epoch + 1}, batch {batch + 1})"
            self._failure = NotFinite(f"the loss is {loss} at {where}", batch)
