"""The state of a run, taken as tensors and plain values, and put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..callbacks.dispatch import Dispatch
from ..feed.batching import Feed
from ..history import History
from ..parameters import copied, copy_of_parameters, set_parameters
from ..run import Run
from ..stepper import Stepper
from . import optimizer_state
from .learning_rates import plans_of, set_plans

__all__ = ["put_back", "set_position", "state_of"]

_DOES_NOT_FIT = (
    "resume: expected a state that fits this run, got one that does not ({}). Resume with what wrote the checkpoint, "
    "or use an earlier one."
)
_COUNTERS = ("epoch", "batch", "step", "first_epoch", "learning_rate_factor")


def state_of(run: Run, stepper: Stepper, feed: Feed, callbacks: Dispatch, belongs_to: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of all that the rest of the run depends on."""
    return copied(
        {
            **{name: getattr(run, name) for name in _COUNTERS},
            "batches_per_epoch": run.batches_per_epoch,
            "values": run.values,
            "history": run.history.state_dict(),
            "meter": run.meter.state_dict(),
            **copy_of_parameters(run.parameters, run.modules),
            "optimizer": optimizer_state.get_state(run.svi.optim, run.parameters),
            "stepper": stepper.state_dict(),
            "feed": feed.state_dict(run.batch),
            "callbacks": callbacks.state_dict(),
            "belongs_to": belongs_to,
        }
    )


def set_position(run: Run, feed: Feed, state: dict[str, Any]) -> None:
    """Set counters, figures and generators: all that the next batch depends on."""
    for name in _COUNTERS:
        setattr(run, name, state[name])
    run.values = dict(state["values"])
    run.history = History.from_state_dict(state["history"])
    run.meter.load_state_dict(state["meter"])
    with _naming_the_state():
        feed.load_state_dict(state["feed"])


def put_back(
    run: Run, stepper: Stepper, callbacks: Dispatch, state: dict[str, Any], *, keep_plans: bool = False
) -> None:
    """Set parameters, optimizer, stepper and callbacks, once the parameters exist.

    Args:
        run: the run.
        stepper: takes its steps.
        callbacks: its callbacks.
        state: what ``state_of`` returned.
        keep_plans: whether learning-rate schedulers keep the lengths that they were made with, and do not take those in
            ``state``.

    Raises:
        ValueError: the state does not fit; then nothing has changed, except in callbacks that could not take it.
    """
    before = copied(
        {
            **copy_of_parameters(run.parameters, run.modules),
            "optimizer": optimizer_state.get_state(run.svi.optim, run.parameters),
        }
    )
    plans = plans_of(run.svi.optim)
    try:
        with _naming_the_state():
            set_parameters(state, run.parameters, run.modules)
            optimizer_state.set_state(run.svi.optim, copied(state["optimizer"]), run.parameters)
            if keep_plans:
                set_plans(plans)
            stepper.load_state_dict(state["stepper"])
            callbacks.load_state_dict(copied(state["callbacks"]))
    except BaseException:
        set_parameters(before, run.parameters, run.modules)
        optimizer_state.set_state(run.svi.optim, before["optimizer"], run.parameters)
        raise


@contextmanager
def _naming_the_state() -> Iterator[None]:
    """Say that the state does not fit, whatever exception shows it: a checkpoint need not be what it seems."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith("resume: "):
            raise
        raise ValueError(_DOES_NOT_FIT.format(error)) from error
    except Exception as error:
        raise ValueError(_DOES_NOT_FIT.format(f"{type(error).__name__}: {error}")) from error
