"""What a checkpoint must hold."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["require_layout"]


def require_layout(contents: dict[str, Any]) -> None:
    """Refuse contents that are not those of a checkpoint: missing, of another type, or impossible.

    Raises:
        ValueError: with what was expected and what came.
    """
    for name in ("epoch", "batch", "step", "first_epoch"):
        _require(name, contents, lambda value: type(value) is int and value >= 0, "a whole number of at least 0")
    _require("learning_rate_factor", contents, lambda v: type(v) is float and 0 < v <= 1, "a number in (0, 1]")
    _require(
        "batches_per_epoch", contents, lambda v: v is None or (type(v) is int and v >= 1), "None or a whole number"
    )
    _require("values", contents, lambda v: _is_dict_of(v, float), "numbers by name")
    _require("history", contents, _is_history, "names and a table of numbers")
    _require("meter", contents, _is_meter, "sums of loss, rows and seconds")
    _require("modules", contents, lambda v: type(v) is list and all(_is_dict(m) for m in v), "a list of dictionaries")
    _require("parameters", contents, lambda v: _is_dict_of(v, Tensor), "tensors by name")
    _require("module_parameters", contents, _is_list_of_names, "a list of lists of names")
    _require("with_gradient", contents, lambda v: _is_list_of_names([v]), "a list of names")
    _require("late", contents, _is_late, "modules, parameters and other values of the store")
    _require("feed", contents, _is_feed, "the states of generators")
    _require("callbacks", contents, _is_callbacks, "the names and states of callbacks")
    for name in ("optimizer", "stepper", "belongs_to"):
        _require(name, contents, _is_dict, "a dictionary")
    if len(contents["module_parameters"]) != len(contents["modules"]):
        raise ValueError(
            f"modules: expected {len(contents['module_parameters'])}, each with its parameters, got "
            f"{len(contents['modules'])}"
        )
    held = {name for names in contents["module_parameters"] for name in names} | set(contents["parameters"])
    missing = [name for name in contents["belongs_to"].get("parameter", {}) if name not in held]
    if missing:
        raise ValueError(f"parameters: expected {missing[:4]} among them, got {sorted(held)[:4]}")
    if contents["step"] < contents["batch"] or contents["step"] < contents["epoch"]:
        raise ValueError(
            f"step: expected at least one for each epoch and batch, got {contents['step']} steps in "
            f"{contents['epoch']} epochs and {contents['batch']} batches"
        )


def _require(name: str, contents: dict[str, Any], is_right: Any, expected: str) -> None:
    if name not in contents:
        raise ValueError(f"{name}: expected {expected}, got none")
    if not is_right(contents[name]):
        text = repr(contents[name])
        raise ValueError(f"{name}: expected {expected}, got {text if len(text) < 60 else text[:57] + '...'}")


def _is_dict(value: Any) -> bool:
    return type(value) is dict and all(type(key) is str for key in value)


def _is_dict_of(value: Any, kind: type) -> bool:
    return _is_dict(value) and all(isinstance(item, kind) for item in value.values())


def _is_list_of_names(value: Any) -> bool:
    return type(value) is list and all(
        type(names) is list and all(type(name) is str for name in names) for names in value
    )


def _is_late(value: Any) -> bool:
    return (
        _is_dict(value)
        and value.keys() == {"modules", "parameters", "store"}
        and _is_dict_of(value["parameters"], Tensor)
        and _is_dict_of(value["store"], Tensor)
        and type(value["modules"]) is list
        and all(
            type(item) is list and len(item) == 2 and _is_list_of_names([item[0]]) and _is_dict(item[1])
            for item in value["modules"]
        )
    )


def _is_history(value: Any) -> bool:
    if not _is_dict(value) or value.keys() != {"names", "whole", "table", "present"}:
        return False
    names, table, present = value["names"], value["table"], value["present"]
    return (
        type(names) is list
        and all(type(name) is str for name in names)
        and type(value["whole"]) is list
        and isinstance(table, Tensor)
        and isinstance(present, Tensor)
        and table.dtype == torch.float64
        and present.dtype == torch.bool
        and table.ndim == 2
        and table.shape == present.shape
        and table.shape[1] == len(names)
    )


def _is_meter(value: Any) -> bool:
    return (
        _is_dict(value)
        and value.keys() == {"loss", "rows", "seconds"}
        and all(type(item) in (int, float) and math.isfinite(item) for item in value.values())
        and value["rows"] >= 0
        and value["seconds"] >= 0
    )


def _is_feed(value: Any) -> bool:
    return (
        _is_dict(value)
        and value.keys() == {"generators", "epoch_start", "batches", "owners"}
        and _is_generators(value["generators"])
        and (value["epoch_start"] == {} or _is_generators(value["epoch_start"]))
    )


def _is_generators(value: Any) -> bool:
    return (
        _is_dict(value)
        and {"torch", "numpy", "python", "own"} <= value.keys()
        and isinstance(value["torch"], Tensor)
        and value["torch"].dtype == torch.uint8
        and value["torch"].shape == torch.get_rng_state().shape
        and type(value["numpy"]) is list
        and len(value["numpy"]) == 5
        and type(value["python"]) is list
        and len(value["python"]) == 3
        and type(value["own"]) is list
    )


def _is_callbacks(value: Any) -> bool:
    return type(value) is list and all(
        _is_dict(item)
        and item.keys() == {"name", "state"}
        and type(item["name"]) is str
        and type(item["state"]) is dict
        for item in value
    )
