"""One run of ``fit``: where it stands, and how it takes a step and an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..infer.distributed import JointStep, Totals, gather, own_noise, require_same, same_start, world_size
from . import generators, optimiser
from .batches import arguments, batch_size, batches_from, naming_the_batch, number_of, require_arguments
from .callbacks import Callbacks
from .captures import Calls
from .guard import NotFinite
from .history import History
from .nonfinite import understood
from .parts import parts_of, weights_of
from .schedules import Schedule, values_at
from .signals import PoliteStop
from .state import begin_from, put_back, undone
from .validation import validation_elbo

__all__ = ["Run"]

_ENDED = object()  # in place of a batch, where other processes may still have one
_LOOK_EVERY = 100  # steps between two looks at losses that lie on an accelerator


class Run:
    """The state of a run, as callbacks see it.

    Attributes:
        svi: the ``pyro.infer.SVI`` (or ``CompiledSVI``) that takes the steps.
        epochs: how many epochs the run is to have in all.
        epoch: epochs finished.
        step: optimiser steps taken.
        batch: batches of the current epoch finished.
        history: figures of the finished epochs.
        values: current value of every schedule.
        parameters: every (unconstrained) parameter of model and guide, by its name in Pyro's store.
        modules: the outermost modules that model and guide use.
        learning_rate_factor: 1, halved by every restore after a loss that was not finite.
        stopping: whether training stops after this epoch; set it from a callback.
        status: "running", then "finished", "interrupted" (a signal) or "failed" (an exception).
    """

    def __init__(
        self,
        svi: Any,
        train: Any,
        *,
        epochs: int,
        validation: Any = None,
        schedules: Mapping[str, Schedule] | None = None,
        size: int | None = None,
        transform: Callable[[Any], Any] | None = None,
        callbacks: Callbacks,
    ) -> None:
        self.svi = svi
        self.train = train
        self.validation = validation
        self.schedules = dict(schedules or {})
        self.size = size
        self.transform = transform
        self.callbacks = callbacks
        self.epochs = epochs
        self.epoch = 0
        self.step = 0
        self.batch = 0
        self.first_epoch = int(getattr(train, "epoch", 0)) if hasattr(train, "iterate") else 0
        self.batches_per_epoch = number_of(train)
        self.history = History()
        self.values: dict[str, float] = {}
        self.parameters: dict[str, Tensor] = {}
        self.modules: list[nn.Module] = []
        self.learning_rate_factor = 1.0
        self.stopping = False
        self.status = "running"
        self.epoch_generators: dict[str, Any] = {}
        self.resumed_from: Path | None = None
        self.snapshot: dict[str, Any] | None = None  # the last good state, to restore
        self.restores = 0
        # CompiledSVI.update is a step that leaves the loss on the device.
        self._take_step = getattr(svi, "update", None) or svi.step
        self.calls = Calls() if hasattr(svi, "update") else None
        self.joint: JointStep | None = None  # takes the steps where several processes train together
        self.stop = PoliteStop(enabled=False)
        self._batches: Iterator[Any] | None = None
        # The objective summed over the epoch's data so far, their number, and losses that were not looked at yet.
        self._loss_sum = 0.0
        self._count = 0
        self._unseen: list[tuple[Tensor, float, str, int]] = []
        self._bad: NotFinite | None = None
        self._seconds, self._clock = 0.0, time.perf_counter()
        # What the last step worked on, for the case that it is not finite: arguments, keywords, generator.
        self.current: tuple[tuple[Any, ...], dict[str, Any], Tensor] | None = None

    @property
    def time(self) -> float:
        """Epochs trained once the coming step is done: a fraction, or a whole number where no length is known."""
        return self.epoch + ((self.batch + 1) / self.batches_per_epoch if self.batches_per_epoch else 1.0)

    @property
    def train_elbo(self) -> float:
        """Objective of the current epoch so far, nats per datum (reads the losses off the device)."""
        self.look()
        return -self._loss_sum / self._count if self._count else math.nan

    @property
    def where(self) -> str:
        """The step at hand, in words."""
        return f"step {self.step + 1} ({self.position})"

    @property
    def position(self) -> str:
        """The batch at hand, in words."""
        return f"epoch {self.epoch + 1}, batch {self.batch + 1}"

    def weights(self) -> dict[str, Any]:
        """A copy of parameters and buffers, as ``pyro_vae.Checkpoint`` saves them."""
        return weights_of(self.parameters, self.modules)

    def agree_on_length(self) -> None:
        """Take the longest epoch of all processes for this one's."""
        lengths = [length for length in gather(self.batches_per_epoch) if length is not None]
        self.batches_per_epoch = max(lengths) if len(lengths) == world_size() else None

    def open(self, state: dict[str, Any] | None = None) -> None:
        """Fetch the first batch, let every parameter come into being on it, and go to ``state``."""
        if state is not None:
            begin_from(self, state)
        with naming_the_batch("train", self):
            if self.epoch < self.epochs:
                args = self._first_arguments()
            else:  # nothing to train: a batch is looked at, and no generator moves
                with generators.preserved(generators.own_generators(self.train)):
                    args = self._first_arguments()
            require_arguments("train", args, self.svi.model)
            self._set_values()
            self.parameters, self.modules = parts_of(self.svi, args, self.keywords(args))
        optimiser.prepare(self.svi.optim, self.parameters)
        for module in self.modules:
            module.train()
        if state is not None:
            self.values = dict(state["values"])
            put_back(self, state)
            if self.calls is not None:
                self.calls.owe(state["calls"])

    def _first_arguments(self) -> tuple[Any, ...]:
        self._begin_epoch()
        assert self._batches is not None
        first = next(self._batches, None)
        if first is not None:
            self._batches = chain([first], self._batches)
        elif self.batch:  # stopped between the last step of an epoch and its end: any batch will do
            self._batches = iter(())
            with generators.preserved(generators.own_generators(self.train)):
                first = next(batches_from(self.train, self.first_epoch + self.epoch, 0, {}, self.stop), None)
        if first is None:
            raise self._no_batch()
        return arguments(first, self.transform)

    def _begin_epoch(self) -> None:
        if self.batch == 0:
            self.epoch_generators = generators.get_state(generators.own_generators(self.train))
            self._loss_sum, self._count, self._seconds = 0.0, 0, 0.0
        self._clock = time.perf_counter()
        epoch = self.first_epoch + self.epoch
        self._batches = batches_from(self.train, epoch, self.batch, self.epoch_generators, self.stop)

    def steps(self) -> Iterator[None]:
        """Take the steps that the current epoch still has, yielding after each."""
        with naming_the_batch("train", self):
            if self._batches is None:
                self._begin_epoch()
            batches, self._batches = self._batches, None
            for batch in self._until_all_end(batches or ()):
                values = self.values
                self._set_values()
                args = () if batch is _ENDED else arguments(batch, self.transform)
                keywords = self.keywords(args)
                if self.calls is not None and args and batch_size(args):
                    self.calls.before("step", args, keywords, partial(self._repeat_steps, args, keywords))
                with own_noise():
                    self.current = (args, keywords, torch.get_rng_state())
                    try:
                        loss: Any = (self.joint or self._take_step)(*args, **keywords)
                    except ValueError as error:
                        raise understood(self, error) or error from error
                rows = batch_size(args)
                if isinstance(loss, Totals):
                    if not loss.taking_part:
                        self.values = values
                        break
                    loss, rows = loss.loss, loss.rows
                self._count_step(loss, rows)
                yield
        if self.batch == 0:
            raise self._no_batch()
        self.batches_per_epoch = self.batch

    def _until_all_end(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches; then, where several processes train, ``_ENDED`` for as long as another has some."""
        yield from batches
        if self.joint is not None:
            yield from repeat(_ENDED)

    def _count_step(self, loss: Any, rows: int) -> None:
        weight = rows / self.size if self.size else 1.0
        if isinstance(loss, Tensor) and loss.device.type != "cpu":
            # Reading it would wait for the device: many are read at once.
            self._unseen.append((loss.detach().clone(), weight, self.where, self.batch))
            if len(self._unseen) >= _LOOK_EVERY:
                self.look()
        else:
            self._add(float(loss[0] if isinstance(loss, tuple) else loss), weight, self.where, self.batch)
        if self._bad is not None:
            raise self._bad
        self._count += rows
        self.step += 1
        self.batch += 1

    def look(self) -> bool:
        """Read the losses that still lie on an accelerator; whether all losses so far were finite."""
        unseen, self._unseen = self._unseen, []
        if unseen:
            values = torch.stack([loss.double() for loss, *_ in unseen]).tolist()
            for value, (_, weight, where, batch) in zip(values, unseen, strict=True):
                self._add(value, weight, where, batch)
        return self._bad is None

    def _add(self, loss: float, weight: float, where: str, batch: int) -> None:
        if math.isfinite(loss):
            self._loss_sum += loss * weight
        elif self._bad is None:
            self._bad = NotFinite(f"the loss is {loss} at {where}", batch)

    def refuse_nonfinite(self) -> None:
        """Raise where a loss so far was not finite."""
        if not self.look() and self._bad is not None:
            raise self._bad

    def finish_epoch(self) -> None:
        """Validate, and write the epoch's row of the history."""
        self.refuse_nonfinite()
        require_same(self.parameters)
        same_start({}, self.modules)  # buffers, such as running averages: the first process's
        row: dict[str, float] = {"epoch": self.epoch + 1, "train_elbo": self.train_elbo}
        if self.validation is not None:
            row["validation_elbo"] = validation_elbo(self)
        self.history.append({**row, **self.values, "seconds": self.sums()["seconds"], "steps": self.step})
        self.epoch += 1
        self.batch = 0
        if hasattr(self.train, "iterate") and hasattr(self.train, "epoch"):
            self.train.epoch = self.first_epoch + self.epoch
        # Where the next epoch begins, for a checkpoint that is taken before it does.
        self._loss_sum, self._count, self._seconds, self._clock = 0.0, 0, 0.0, time.perf_counter()
        self.epoch_generators = generators.get_state(generators.own_generators(self.train))

    def sums(self) -> dict[str, float]:
        """The epoch's sums so far: of the loss, of data, of seconds."""
        self.look()
        seconds = self._seconds + time.perf_counter() - self._clock
        return {"loss": self._loss_sum, "count": self._count, "seconds": seconds}

    def set_sums(self, sums: Mapping[str, float]) -> None:
        """Go on from ``sums()``."""
        self._loss_sum, self._count, self._seconds = sums["loss"], int(sums["count"]), sums["seconds"]
        self._clock = time.perf_counter()
        self._unseen, self._bad, self._batches = [], None, None

    def _set_values(self) -> None:
        if self.schedules:
            self.values = values_at(self.schedules, self.time)

    def keywords(self, args: tuple[Any, ...]) -> dict[str, Any]:
        """What goes to model and guide beside the batch: schedules' values, as tensors so that none is a constant."""
        keywords: dict[str, Any] = {}
        if self.values:
            device = next((arg.device for arg in args if isinstance(arg, Tensor)), None)
            dtype = torch.get_default_dtype()
            keywords = {name: torch.full((), self.values[name], device=device, dtype=dtype) for name in self.schedules}
        if self.size is not None:
            keywords["size"] = self.size
        return keywords

    def _repeat_steps(self, args: tuple[Any, ...], keywords: dict[str, Any], times: int) -> None:
        # A joint step's own part only: the other processes may have none to repeat.
        take_step = self._take_step if self.joint is None else self.svi.backward
        with undone(self):
            for _ in range(times):
                take_step(*args, **keywords)

    def _no_batch(self) -> ValueError:
        return ValueError(
            f"train: expected at least one batch in every epoch, got none in epoch {self.epoch + 1}. "
            "Give data, and an iterable that can be iterated again (a list, a DataLoader, pyro_vae.data.Batches), "
            "not a generator."
        )
