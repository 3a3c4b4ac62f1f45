"""Optimization steps, whatever the kind of SVI."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from ..infer import CompiledSVI
from ..infer.distributed import JointStep
from .feed.rows import Rows
from .nonfinite.detect import before_update

__all__ = ["JointStepper", "Step", "Stepper", "stepper_of"]


class Step(NamedTuple):
    """What a step came to."""

    loss: Any  # minus the bound in nats, summed over the data of the batch, or scaled up to more of them
    rows: int  # number of data in the batch; of all processes, where several train together
    factor: float = 1.0  # that makes the loss a sum over the data of the batch, where fit has no size=
    taken: bool = True  # False where no process had a batch
    stopping: bool = False  # whether a process is asked to stop


class Stepper:
    """Steps of Pyro's ``SVI``, or of anything with its methods.

    Args:
        svi: takes the steps.
        rows: counts the data of a batch.
    """

    def __init__(self, svi: Any, rows: Rows) -> None:
        self.svi = svi
        self.rows = rows

    def step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
        """Take a step on a batch."""
        loss = self.svi.step(*args, **kwargs)
        data = self.rows.count(args, kwargs)
        return Step(loss, data.rows, data.factor)

    def evaluate_loss(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        """Return minus the bound of a batch, in nats, without a step."""
        loss = self.svi.evaluate_loss(*args, **kwargs)
        return float(loss[0] if isinstance(loss, tuple) else loss)

    @contextmanager
    def refusing(self, refuse: Callable[[Any], None]) -> Iterator[None]:
        """While entered, call ``refuse(loss)`` in each step before its update, which an exception prevents."""
        with before_update(self.svi, refuse):
            yield

    def state_dict(self) -> dict[str, Any]:
        """Return what these steps depend on beside parameters and optimizer."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""


class CompiledStepper(Stepper):
    """Steps of a ``CompiledSVI``, which leave the loss on its device."""

    def step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
        own = type(self.svi).step is not CompiledSVI.step  # a subclass's
        loss = (self.svi.step if own else self.svi.update)(*args, **kwargs)
        data = self.rows.count(args, kwargs)
        return Step(loss, data.rows, data.factor)

    @contextmanager
    def refusing(self, refuse: Callable[[Any], None]) -> Iterator[None]:
        yield  # its graph prevents an update that is not finite by itself

    def state_dict(self) -> dict[str, Any]:
        return self.svi.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.svi.load_state_dict(state)


class JointStepper(Stepper):
    """Steps that several processes take together.

    Args:
        alone: the stepper of this process.
        parameters: all parameters by name.
        stop: asked in every step whether this process is asked to stop.
    """

    def __init__(self, alone: Stepper, parameters: Mapping[str, Tensor], stop: Callable[[], bool]) -> None:
        super().__init__(alone.svi, alone.rows)
        self._alone = alone
        self._factor = 1.0  # of this process's last batch, which holds for all where their batches are alike
        self._step = JointStep(alone.svi, parameters, stop=stop, rows=lambda *args, **kwargs: alone.rows(args, kwargs))

    def step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
        loss, rows, taking_part, stopping = self._step(*args, **kwargs)
        if args:
            self._factor = self.rows.count(args, kwargs).factor
        return Step(loss, rows, self._factor, taking_part > 0, stopping)

    def refusing(self, refuse: Callable[[Any], None]) -> Any:
        return self._alone.refusing(refuse)

    def state_dict(self) -> dict[str, Any]:
        return self._alone.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._alone.load_state_dict(state)


def stepper_of(svi: Any, rows: Rows) -> Stepper:
    """Return the stepper for this kind of SVI."""
    return (CompiledStepper if isinstance(svi, CompiledSVI) else Stepper)(svi, rows)
