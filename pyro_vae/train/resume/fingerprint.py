"""Describe data, so that other data are told from them."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["describe_data", "is_option", "name_of"]

_SAMPLE = 64  # rows of a tensor, or batches of a list, that are compared
_OF_DATA = ("batch_size", "shuffle", "drop_last", "seed", "num_data")  # other attributes may count, or change nothing


def describe_data(batches: Any) -> dict[str, Any]:
    """Return the kind and number of the data, how they are cut into batches, and a fingerprint of those in memory."""
    found: dict[str, Any] = {"class": type(batches).__qualname__}
    if isinstance(batches, (list, tuple)):
        return {**found, "batches": len(batches), "fingerprint": _fingerprint(_sample(batches))}
    dataset = getattr(batches, "dataset", None)
    for name, owner in (("batches", batches), ("data", dataset)):
        with suppress(TypeError):  # it has no length
            found[name] = len(owner)  # type: ignore[arg-type]
    for owner in (batches, dataset):
        attributes = getattr(owner, "__dict__", {})
        found |= {name: attributes[name] for name in _OF_DATA if is_option(attributes.get(name))}
        found |= {name: name_of(attributes[name]) for name in ("transform", "sampler", "dataset") if name in attributes}
        held = [value for value in attributes.values() if _is_data(value)]
        if held:
            found["fingerprint"] = _fingerprint(held)
    return found


def _is_data(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(map(_is_data, value[:_SAMPLE]))
    return isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0


def _sample(items: Any) -> list[Any]:
    """At most so many items, evenly spaced, the last one included."""
    number = len(items)
    places = range(number) if number <= _SAMPLE else [round(i * (number - 1) / (_SAMPLE - 1)) for i in range(_SAMPLE)]
    return [items[place] for place in places]


def _fingerprint(value: Any) -> str:
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()[:16]


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, (Tensor, np.ndarray)):
        digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
        rows = _sample(value) if value.ndim else [value]
        for row in rows:
            array = row.detach().cpu() if isinstance(row, Tensor) else torch.as_tensor(np.asarray(row))
            array = array if array.layout == torch.strided else array.to_dense()
            digest.update(array.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, (list, tuple)):
        for item in value:
            _feed(digest, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            digest.update(str(key).encode())
            _feed(digest, item)
    elif isinstance(value, (bool, int, float, str)):
        digest.update(repr(value).encode())


def is_option(value: Any) -> bool:
    """Return whether a value is a plain one, or a short list or dictionary of them."""
    if isinstance(value, (list, tuple)):
        return len(value) < 20 and all(map(is_option, value))
    if isinstance(value, dict):
        return len(value) < 20 and all(map(is_option, value.values()))
    return isinstance(value, (bool, int, float, str, np.number))


def name_of(value: Any) -> str:
    """Return the name of a function, a method or a class; of an object, that of its class."""
    function = getattr(value, "__func__", value)
    if isinstance(getattr(function, "__qualname__", None), str):
        owner = getattr(value, "__self__", None)
        name = f"{type(owner).__qualname__}.{function.__name__}" if owner is not None else function.__qualname__
    else:
        name = type(value).__qualname__
    return name.replace("<locals>.", "")
