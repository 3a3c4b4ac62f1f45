"""A run of ``fit`` as callbacks see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .history import History
from .meter import Meter

__all__ = ["Run"]


@dataclass(kw_only=True)
class Run:
    """Where a run of ``fit`` stands. Callbacks read it; ``fit`` alone writes it, but for ``stopping``.

    Attributes:
        svi: the ``pyro.infer.SVI`` (or ``CompiledSVI``) that is trained.
        train: the training batches, as they were given to ``fit``.
        validation: the validation batches, or None.
        epochs: number of epochs that the run is to have in all.
        size: number of data in the whole set, where ``fit`` was given it.
        epoch: number of epochs finished.
        step: number of optimizer steps taken.
        batch: number of batches of the current epoch that were trained on.
        first_epoch: number of the data's own epoch (``pyro_vae.data.Batches.epoch``) at which the run began.
        batches_per_epoch: number of batches in an epoch; None until it is known.
        history: figures of the finished epochs.
        meter: sums over the current epoch; ``meter.elbo`` is its ELBO so far, in nats per datum.
        values: current value of each schedule.
        parameters: the unconstrained parameters of model and guide, by their names in Pyro's store.
        modules: the outermost modules that model and guide use.
        learning_rate_factor: 1, halved by each return to an earlier state (``on_nonfinite="restore"``).
        stopping: whether training ends after this epoch. A callback may set it.
        status: "running", then "finished", "interrupted" (by a signal) or "failed" (by an exception).
        resumed_from: the checkpoint that the run went on from, or None.
        take_state: function that returns a copy of all that the rest of the run depends on, as tensors and plain
            values; None where a loss so far was not finite.
    """

    svi: Any
    train: Iterable[Any]
    validation: Iterable[Any] | None = None
    epochs: int
    size: int | None = None
    epoch: int = 0
    step: int = 0
    batch: int = 0
    first_epoch: int = 0
    batches_per_epoch: int | None = None
    history: History = field(default_factory=History)
    meter: Meter = field(default_factory=Meter)
    values: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    modules: list[nn.Module] = field(default_factory=list)
    learning_rate_factor: float = 1.0
    stopping: bool = False
    status: str = "running"
    resumed_from: Path | None = None
    take_state: Callable[[], dict[str, Any] | None] = lambda: None

    @property
    def time(self) -> float:
        """Number of epochs trained once the coming step is done: a fraction where the length of an epoch is known."""
        return self.epoch + ((self.batch + 1) / self.batches_per_epoch if self.batches_per_epoch else 1.0)

    @property
    def position(self) -> str:
        """The current batch, in words."""
        return f"epoch {self.epoch + 1}, batch {self.batch + 1}"

    @property
    def where(self) -> str:
        """The current step, in words."""
        return f"step {self.step + 1} ({self.position})"

    def names_of(self, module: nn.Module) -> list[str]:
        """The names in Pyro's store of a module's parameters."""
        names = {id(value): name for name, value in self.parameters.items()}
        return [names[id(value)] for value in module.parameters() if id(value) in names]
