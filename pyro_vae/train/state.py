"""All of a run in tensors and plain values, and a run put back into such a state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from . import generators, optimiser
from .history import History
from .parts import copied, weights_from

if TYPE_CHECKING:
    from .run import Run

__all__ = ["begin_from", "put_back", "state_of", "undone"]

_COUNTERS = ("epoch", "batch", "step", "first_epoch", "batches_per_epoch", "learning_rate_factor")


def state_of(run: Run) -> dict[str, Any]:
    """A copy of everything that the rest of the run depends on."""
    own = generators.own_generators(run.train)
    return copied(
        {
            **{name: getattr(run, name) for name in _COUNTERS},
            "values": run.values,
            "history": list(run.history),
            "sums": run.sums(),
            "weights": run.weights(),
            "optimiser": optimiser.get_state(run.svi.optim, run.parameters),
            "generators": generators.get_state(own),
            "epoch_generators": run.epoch_generators,
            "callbacks": run.callbacks.state(),
            "calls": {} if run.calls is None else run.calls.counts,
        }
    )


def begin_from(run: Run, state: dict[str, Any]) -> None:
    """Take up counters and figures: all that the position in the data depends on."""
    length = state["batches_per_epoch"]
    if state["batch"] and None not in (length, run.batches_per_epoch) and length != run.batches_per_epoch:
        raise ValueError(
            f"resume: expected {length} batches an epoch, as the checkpoint within epoch {state['epoch'] + 1} was "
            f"made with, got {run.batches_per_epoch}. Resume with the same data and batch size."
        )
    for name in _COUNTERS:
        if name != "batches_per_epoch":
            setattr(run, name, state[name])
    run.values = dict(state["values"])
    run.history = History(state["history"])
    run.set_sums(state["sums"])
    run.epoch_generators = state["epoch_generators"]
    generators.set_state(state["generators"], generators.own_generators(run.train))


def put_back(run: Run, state: dict[str, Any]) -> None:
    """Write weights and the optimiser's state, in place, once the parameters exist."""
    weights_from(state["weights"], run.parameters, run.modules)
    optimiser.set_state(run.svi.optim, copied(state["optimiser"]), run.parameters)
    run.callbacks.load_state(copied(state["callbacks"]))


@contextmanager
def undone(run: Run) -> Iterator[None]:
    """Undo what is done to weights, optimiser and generators."""
    weights, optim = run.weights(), copied(optimiser.get_state(run.svi.optim, run.parameters))
    with generators.preserved():
        yield
    weights_from(weights, run.parameters, run.modules)
    optimiser.set_state(run.svi.optim, optim, run.parameters)
