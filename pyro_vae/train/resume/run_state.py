"""The state of a run, taken as tensors and plain values, and put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..callbacks.dispatch import Dispatch
from ..feed.batching import Feed
from ..history import History
from ..late import LateParts
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
# Tensors besides the parameters (moments, averages, a sampler's order), in bytes: many times what any run keeps.
_BYTES_PER_BYTE_OF_THE_MODEL = 64
_BYTES_FOR_ANY_MODEL = 2**30
_COUNTERS = ("epoch", "batch", "step", "first_epoch", "learning_rate_factor")


def state_of(
    run: Run, stepper: Stepper, feed: Feed, callbacks: Dispatch, late: LateParts, belongs_to: dict[str, Any]
) -> dict[str, Any]:
    """Return a copy of all that the rest of the run depends on."""
    return {
        **{name: getattr(run, name) for name in _COUNTERS},
        "batches_per_epoch": run.batches_per_epoch,
        "values": dict(run.values),
        "history": run.history.state_dict(),
        "meter": run.meter.state_dict(),
        **copy_of_parameters(run.parameters, run.modules),
        "module_parameters": [run.names_of(module) for module in run.modules],
        # Pyro's SVI leaves gradients of zeros, by which momentum moves a parameter that the next step does not use.
        "with_gradient": [name for name, value in run.parameters.items() if value.grad is not None],
        "late": copied(late.state_dict()),
        "optimizer": optimizer_state.get_state(run.svi.optim, run.parameters),
        "stepper": copied(stepper.state_dict()),
        "feed": copied(feed.state_dict(run.batch)),
        "callbacks": copied(callbacks.state_dict()),
        "belongs_to": belongs_to,
    }


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
    run: Run,
    stepper: Stepper,
    callbacks: Dispatch,
    late: LateParts,
    state: dict[str, Any],
    *,
    keep_plans: bool = False,
) -> list[str]:
    """Set parameters, optimizer, stepper and callbacks, once the parameters exist.

    Args:
        run: the run.
        stepper: takes its steps.
        callbacks: its callbacks.
        late: waits for what ``state`` holds of parameters and modules that do not exist yet.
        state: what ``state_of`` returned.
        keep_plans: whether learning-rate schedulers keep the lengths that they were made with, and do not take those in
            ``state``.

    Returns:
        Parameters that ``state`` does not hold, and that begin anew, as lines of text.

    Raises:
        ValueError: the state does not fit; then nothing has changed, except in callbacks that could not take it.
    """
    _require_size(run, state)
    before = copied(
        {
            **copy_of_parameters(run.parameters, run.modules),
            "optimizer": optimizer_state.get_state(run.svi.optim, run.parameters),
        }
    )
    plans = plans_of(run.svi.optim)
    try:
        with _naming_the_state():
            new = _set_learned(run, late, state)
            optimizer_state.set_state(run.svi.optim, copied(state["optimizer"]), run.parameters)
            if keep_plans:
                set_plans(plans)
            stepper.load_state_dict(state["stepper"])
            callbacks.load_state_dict(copied(state["callbacks"]))
    except BaseException:
        set_parameters(before, run.parameters, run.modules)
        optimizer_state.set_state(run.svi.optim, before["optimizer"], run.parameters)
        raise
    return new


def _require_size(run: Run, state: dict[str, Any]) -> None:
    """Refuse a checkpoint that asks for much more memory than this run needs, before any of it is copied."""
    model = _bytes_of([run.parameters, [module.state_dict() for module in run.modules]])
    others = _bytes_of([value for name, value in state.items() if name not in ("modules", "parameters")])
    most = _BYTES_PER_BYTE_OF_THE_MODEL * model + _BYTES_FOR_ANY_MODEL
    if others > most:
        raise ValueError(
            f"resume: expected at most {most / 1e6:,.0f} MB of tensors besides the parameters, for a model of "
            f"{model / 1e6:,.1f} MB, the checkpoint holds {others / 1e6:,.0f} MB. Use an earlier one."
        )


def _bytes_of(value: Any) -> int:
    """Return the bytes of all tensors in nested dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        return value.nbytes
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(_bytes_of, inner))


def _set_learned(run: Run, late: LateParts, state: dict[str, Any]) -> list[str]:
    """Set parameters and modules that exist, in whatever order they were found, and let ``late`` wait for the others.

    Returns:
        Parameters that the state does not hold, as lines of text.
    """
    waiting = list(zip(state["module_parameters"], state["modules"], strict=True))
    held = {name for names in state["module_parameters"] for name in names} | set(state["parameters"])
    held |= {name for names, _ in state["late"]["modules"] for name in names} | set(state["late"]["parameters"])
    new = [name for name in run.parameters if name not in held]
    missing = [name for name in held if name not in run.parameters]
    if new and missing:
        raise ValueError(
            f"resume: expected parameters {new[:4]}, as this model and guide have, the checkpoint holds {missing[:4]}. "
            "Resume with the model that wrote it."
        )
    modules, sources = [], []
    for module in run.modules:
        names = run.names_of(module)
        found = next((item for item in waiting if item[0] == names), None)
        if found is not None:
            waiting.remove(found)
            modules.append(module)
            sources.append(found[1])
        elif module.state_dict() and not set(names) <= set(new):
            raise ValueError(
                f"resume: expected a module with the parameters {names[:4]}, the checkpoint holds none. Resume with "
                "the model that wrote it."
            )
    parameters = {name: value for name, value in state["parameters"].items() if name in run.parameters}
    set_parameters({"modules": sources, "parameters": parameters}, run.parameters, modules)
    for name, value in run.parameters.items():
        value.grad = torch.zeros_like(value) if name in state["with_gradient"] else None
    late.load_state_dict(state["late"])
    late.wait_for(waiting, {name: value for name, value in state["parameters"].items() if name not in run.parameters})
    return [f"parameter {name!r}: none in the checkpoint, it begins anew" for name in new]


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
