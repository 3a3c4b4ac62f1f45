"""What a checkpoint belongs to: a description of model, data, optimizer and settings, and how two of them differ."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from ..._version import __version__
from ...infer.distributed.processes import world_size
from ..callbacks.base import Callback
from ..run import Run
from ..schedules import Schedule
from .fingerprint import describe_data, is_option, name_of
from .learning_rates import schedulers

__all__ = ["describe_inputs", "describe_model", "differences"]

_TIMES = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)  # epochs: where to compare schedules
# Differences of these are told, and the run goes on.
_HARMLESS = ("epochs", "seed", "versions", "svi", "processes", "other callbacks", "on_nonfinite", "device")
# So are differences of these where ``epochs`` is another one: a schedule may depend on it.
_PLANS = ("schedules", "optimizer.scheduler", "callbacks.LearningRate")
# And of these where the number of processes is another one: each has its share of the data.
_SHARES = ("train", "validation")
# What in an object changes as it is used.
_PROGRESS = {"epoch", "training", "max_plate_nesting", "device", "generator", "batches"}
_OF_A_SCHEDULER = (
    "total_steps",
    "gamma",
    "step_size",
    "milestones",
    "T_max",
    "T_0",
    "total_iters",
    "power",
    "patience",
)


def describe_inputs(
    run: Run,
    schedules: Mapping[str, Schedule],
    transform: Callable[..., Any] | None,
    keywords: tuple[str, ...],
    rows: Callable[..., int] | None,
    callbacks: list[Callback],
    on_nonfinite: str,
) -> dict[str, Any]:
    """Describe all that is known before model and guide run: the data, the optimizer and the settings."""
    essential = [callback for callback in callbacks if callback.essential and type(callback).__name__ != "Checkpoint"]
    return _plain(
        {
            "epochs": run.epochs,
            "seed": torch.initial_seed(),
            "versions": _versions(),
            "svi": _described(run.svi, ("precision", "compile")),
            "processes": world_size(),
            "on_nonfinite": on_nonfinite,
            "other callbacks": sorted(type(c).__name__ for c in callbacks if not c.essential),
            "model": name_of(run.svi.model),
            "guide": name_of(run.svi.guide),
            "modules": _modules(_owners(run.svi)),
            "objective": _objective(run.svi),
            "optimizer": _optimizer(run.svi.optim),
            "size": run.size,
            "transform": None if transform is None else name_of(transform),
            "keywords": list(keywords),
            "rows": None if rows is None else name_of(rows),
            "schedules": {name: _values(schedule) for name, schedule in schedules.items()},
            "callbacks": {type(callback).__name__: _callback(callback) for callback in essential},
            "train": describe_data(run.train),
            "validation": None if run.validation is None else describe_data(run.validation),
        }
    )


def describe_model(run: Run) -> dict[str, Any]:
    """Describe the modules, the parameters and the schedulers, which exist once model and guide have run."""
    devices = sorted({str(value.device) for value in run.parameters.values()})
    return _plain(
        {
            "device": ", ".join(devices),
            "modules": _modules(run.modules),
            "parameter": {name: [list(value.shape), str(value.dtype)] for name, value in run.parameters.items()},
            "optimizer.scheduler": [_scheduler(s) for s in _first(schedulers(run.svi.optim))],
            "optimizer.of_parameter": _options_by_name(run.svi.optim, run.parameters),
        }
    )


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Compare the description in a checkpoint with that of a run.

    Args:
        then: what the checkpoint holds.
        now: a description, or a part of one, of the run that is to go on.

    Returns:
        The differences that forbid to go on, and those that are harmless, as lines of text.
    """
    harmless: tuple[str, ...] = _HARMLESS
    if then.get("epochs") != now.get("epochs", then.get("epochs")):
        harmless += _PLANS
    if then.get("processes") != now.get("processes", then.get("processes")):
        harmless += _SHARES
    serious: list[str] = []
    mild: list[str] = []
    for name in now:
        # A parameter, a module or an attribute of one that only one of them has may appear later: parameters are
        # compared again when they are set.
        both = name in ("parameter", "modules", "optimizer.of_parameter")
        for path, old, new in _compare(name, then.get(name), now[name], both):
            line = f"{path}: {_short(old)} in the checkpoint, {_short(new)} now"
            (mild if path.startswith(harmless) else serious).append(line)
    return serious, mild


def _compare(path: str, old: Any, new: Any, both: bool) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            if not both or (key in old and key in new):
                yield from _compare(f"{path}.{key}", old.get(key), new.get(key), both)
    elif old != new:
        yield path, old, new


def _short(value: Any) -> str:
    text = "none" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _owners(svi: Any) -> list[nn.Module]:
    """The modules of which model and guide are methods, or which they are."""
    owners = [getattr(function, "__self__", function) for function in (svi.model, svi.guide)]
    return list(dict.fromkeys(owner for owner in owners if isinstance(owner, nn.Module)))


def _modules(modules: list[nn.Module]) -> dict[str, Any]:
    return {
        f"{number}{'.' if path else ''}{path}": _described(part)
        for number, module in enumerate(modules)
        for path, part in module.named_modules()
    }


def _versions() -> dict[str, str]:
    return {
        "pyro_vae": __version__,
        "torch": str(torch.__version__),
        "pyro": pyro.__version__,
        "python": platform.python_version(),
    }


def _described(value: Any, names: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Class of an object, and its public attributes that are plain values."""
    found: dict[str, Any] = {"class": type(value).__qualname__.replace("<locals>.", "")}
    for name in names if names is not None else sorted(vars(value)):
        attribute = getattr(value, name, None)
        if not name.startswith("_") and name not in _PROGRESS and is_option(attribute):
            found[name] = attribute
    if isinstance(value, (nn.Sequential, nn.ModuleList)):  # what they hold does not appear later
        found["length"] = len(value)
    return found


def _objective(svi: Any) -> Any:
    loss = getattr(svi, "loss", None)
    owner = getattr(loss, "__self__", None)
    return name_of(loss) if owner is None else _described(owner)


def _optimizer(optim: Any) -> dict[str, Any]:
    options = getattr(optim, "pt_optim_args", {})
    maker = getattr(optim, "pt_optim_constructor", None)
    found = {
        **_described(optim, ("clip_norm", "pt_clip_args")),
        "of": name_of(maker) if maker is not None else "",
        "options": {name: _option(value) for name, value in options.items()} if isinstance(options, dict) else {},
    }
    schedule = getattr(optim, "pt_scheduler_args", None)  # of Pyro's schedulers
    return found if schedule is None else {**found, "schedule": {k: _option(v) for k, v in schedule.items()}}


def _options_by_name(optim: Any, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options that a function of the parameters' names gives."""
    if not callable(getattr(optim, "pt_optim_args", None)):
        return {}
    options = {name: optim._get_optim_args(value) for name, value in parameters.items()}
    return {name: {key: _option(value) for key, value in of_one.items()} for name, of_one in options.items()}


def _scheduler(scheduler: Any) -> dict[str, Any]:
    lambdas = getattr(scheduler, "lr_lambdas", None)
    found = _described(scheduler, _OF_A_SCHEDULER)
    return found if lambdas is None else {**found, "lr_lambdas": [_values(function) for function in lambdas]}


def _option(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    return value if is_option(value) else name_of(value)


def _callback(callback: Callback) -> dict[str, Any]:
    """What an essential callback was made with: the arguments that it keeps under their names."""
    found: dict[str, Any] = {}
    for name in inspect.signature(type(callback)).parameters:
        value = getattr(callback, name, None)
        if name == "schedule" and callable(value):
            found[name] = _values(value)
        elif is_option(value):
            found[name] = value
    return found


def _values(schedule: Schedule) -> list[float | None]:
    """Values of a schedule, by which two are compared; None where it has none, beyond the end of a table say."""
    values: list[float | None] = []
    for time in _TIMES:
        try:
            values.append(float(schedule(time)))
        except Exception:  # whatever it is, the loop will say it if it comes to that time
            values.append(None)
    return values


def _first(items: Iterator[Any]) -> list[Any]:
    item = next(items, None)
    return [] if item is None else [item]


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's, sets and tuples as lists: what is read from a file compares equal to it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if type(value) in (bool, int, float, str, type(None)) else str(value)
