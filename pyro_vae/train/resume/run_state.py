"""The state of a run, taken as tensors and plain values, and put back."""

from __future__ import annotations

from typing import Any

from ..callbacks.dispatch import Dispatch
from ..feed.batching import Feed
from ..history import History
from ..parameters import copied, copy_of_parameters, set_parameters
from ..run import Run
from ..stepper import Stepper
from . import optimizer_state

__all__ = ["put_back", "set_position", "state_of"]

_COUNTERS = ("epoch", "batch", "step", "first_epoch", "learning_rate_factor")


def state_of(run: Run, stepper: Stepper, feed: Feed, callbacks: Dispatch) -> dict[str, Any]:
    """Return a copy of all that the rest of the run depends on."""
    return copied(
        {
            **{name: getattr(run, name) for name in _COUNTERS},
            "batches_per_epoch": run.batches_per_epoch,
            "values": run.values,
            "history": list(run.history),
            "meter": run.meter.state_dict(),
            **copy_of_parameters(run.parameters, run.modules),
            "optimizer": optimizer_state.get_state(run.svi.optim, run.parameters),
            "stepper": stepper.state_dict(),
            "feed": feed.state_dict(),
            "callbacks": callbacks.state_dict(),
        }
    )


def set_position(run: Run, feed: Feed, state: dict[str, Any]) -> None:
    """Set counters, figures and generators: all that the next batch depends on."""
    length = state["batches_per_epoch"]
    if state["batch"] and None not in (length, run.batches_per_epoch) and length != run.batches_per_epoch:
        raise ValueError(
            f"resume: expected {length} batches an epoch, as the checkpoint within epoch {state['epoch'] + 1} was "
            f"made with, got {run.batches_per_epoch}. Resume with the same data and batch size."
        )
    for name in _COUNTERS:
        setattr(run, name, state[name])
    run.values = dict(state["values"])
    run.history = History(state["history"])
    run.meter.load_state_dict(state["meter"])
    feed.load_state_dict(state["feed"])


def put_back(run: Run, stepper: Stepper, callbacks: Dispatch, state: dict[str, Any]) -> None:
    """Set parameters, optimizer, stepper and callbacks, once the parameters exist."""
    set_parameters(state, run.parameters, run.modules)
    optimizer_state.set_state(run.svi.optim, copied(state["optimizer"]), run.parameters)
    stepper.load_state_dict(state["stepper"])
    callbacks.load_state_dict(copied(state["callbacks"]))
