"""What training did, epoch by epoch."""

from __future__ import annotations

import csv
import math
import os
from array import array
from collections.abc import Iterator, Mapping
from typing import Any

import torch

__all__ = ["History"]


class History:
    """Every epoch's figures, in order: one mapping of names to numbers an epoch.

    ``fit`` records ``epoch`` (from 1), ``train_elbo`` and, where there are validation data, ``validation_elbo`` (nats
    per datum, higher is better; during a warm-up the training figure is the weighted objective), ``seconds`` (of the
    epoch, validation included), ``steps`` (so far) and the last value of every schedule.

    Args:
        rows: figures to begin with, as from ``list(history)``.

    Example:
        >>> history = History()
        >>> history.append({"epoch": 1, "train_elbo": -120.0})
        >>> history.append({"epoch": 2, "train_elbo": -110.0, "validation_elbo": -111.0})
        >>> history["train_elbo"], history["validation_elbo"]
        ([-120.0, -110.0], [nan, -111.0])
        >>> len(history), history[-1]["epoch"], history[1:]["train_elbo"]
        (2, 2, [-110.0])
    """

    def __init__(self, rows: list[dict[str, float]] | None = None) -> None:
        self._rows: list[dict[str, float]] = []
        self._names: dict[str, None] = {}
        self._table, self._present = array("d"), array("b")  # the figures so far as rows of all names
        self._width = 0
        for row in rows or []:
            self.append(row)

    def append(self, row: Mapping[str, float]) -> None:
        """Add an epoch's figures."""
        self._rows.append(dict(row))
        self._names.update(dict.fromkeys(row))

    @property
    def names(self) -> list[str]:
        """The names of all figures, in the order in which they first came."""
        return list(self._names)

    def state_dict(self) -> dict[str, Any]:
        """Return all figures as a table: 9 bytes for each, and little time, since earlier epochs are kept as such."""
        names, width = self.names, len(self._names)
        if width != self._width:
            self._table, self._present, self._width = array("d"), array("b"), width
        for row in self._rows[len(self._table) // width if width else 0 :]:
            self._table.extend(row.get(name, math.nan) for name in names)
            self._present.extend(name in row for name in names)
        return {
            "names": names,
            "whole": [name for name in names if isinstance(self._rows[-1].get(name), int)],
            "table": _tensor(self._table, torch.float64).view(len(self), width),
            "present": _tensor(self._present, torch.bool).view(len(self), width),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> History:
        """Return the history that ``state_dict`` returned."""
        kinds = {name: int if name in state["whole"] else float for name in state["names"]}
        return cls(
            [
                {name: kinds[name](value) for name, value, there in zip(kinds, row, present, strict=True) if there}
                for row, present in zip(state["table"].tolist(), state["present"].tolist(), strict=True)
            ]
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, float]]:
        return iter([dict(row) for row in self._rows])

    def __getitem__(self, key: str | int | slice) -> Any:
        """A figure by name, one number an epoch (NaN where an epoch has none); an epoch by its place; some by a slice.

        Returns:
            A list of numbers for a name, a dictionary for a place (from 0, or from the end), a ``History`` for a slice.

        Raises:
            KeyError: there is no figure of that name.
            IndexError: there is no such epoch.
        """
        if isinstance(key, slice):
            return History(self._rows[key])
        if isinstance(key, int):
            return dict(self._rows[key])
        if key not in self.names:
            raise KeyError(f"{key!r}: expected one of {self.names}.")
        return [row.get(key, float("nan")) for row in self._rows]

    def __repr__(self) -> str:
        return f"History({len(self)} epochs, figures: {', '.join(self.names)})"

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line an epoch, with a header."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.names)
            writer.writeheader()
            writer.writerows(self._rows)

    def plot(self, ax: Any = None) -> Any:
        """Draw the learning curves, ELBO in nats per datum against epochs, and return the ``matplotlib`` axes.

        Epochs whose ELBO is not finite leave a gap; where none is, the title says so.

        Args:
            ax: axes to draw on; by default those of a new figure.

        Raises:
            ValueError: there is no epoch to draw.
        """
        if not self._rows:
            raise ValueError("history: expected at least one epoch to plot, got none. Train first.")
        if ax is None:
            from matplotlib.figure import Figure

            ax = Figure(figsize=(6, 4), layout="constrained").subplots()
        curves = [name for name in ("train_elbo", "validation_elbo") if name in self.names]
        for name in curves:
            ax.plot(self["epoch"], self[name], marker=".", label=name.removesuffix("_elbo"))
        values = sorted(value for name in curves for value in self[name] if math.isfinite(value))
        if values:
            # The first epochs fall far below the rest; the axis is for where the curves are told apart.
            low, high = values[len(values) // 8], values[-1]
            ax.set_ylim(low - 0.25 * (high - low) - 1e-3, high + 0.08 * (high - low) + 1e-3)
        else:
            ax.set_title("no epoch with a finite ELBO")
        ax.set(xlabel="epoch", ylabel="ELBO (nats per datum)")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
        if curves:
            ax.legend()
        return ax


def _tensor(values: array[Any], dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(values, dtype=dtype).clone() if values else torch.zeros(0, 0, dtype=dtype)
