"""The number of data in a batch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.poutine import Trace
from torch import Tensor, nn

from ..._warn import warn
from ..parameters import look_at

__all__ = ["Data", "Rows", "data_in", "length"]

_MOST = 256  # numbers that are kept, one for each shape of the arguments
_DEPTH = 8  # levels of attributes of an argument that its shape is read from


class Data(NamedTuple):
    """Numbers of data of a batch."""

    rows: int  # in the batch
    whole: int  # that its loss is scaled up to: the size of the whole plate, where the plate is subsampled

    @property
    def factor(self) -> float:
        """Factor that makes the batch's loss a sum over its data."""
        return self.rows / self.whole if self.whole else 1.0


class Rows:
    """Counts the data of a batch, by which its loss is divided.

    That is the size of the plate named ``data``, or else the sum of the sizes of the plates that hold observations and
    sit in no other plate. (Of a subsampled plate it is the subsample's size, and Pyro scales the loss up to the size of
    the whole plate.) Model and guide run once for each shape of the arguments to find it, in eval mode and without
    moving a generator. A model without plates is one datum a batch, of which a warning tells.

    Args:
        svi: with ``model`` and ``guide``.
        count: the user's own function of the batch's arguments, which is then all that counts.
    """

    def __init__(self, svi: Any, count: Callable[..., int] | None = None) -> None:
        self._svi = svi
        self._count = count
        self._known: dict[Hashable, Data] = {}
        self._warned = False

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Return the number of data in a batch."""
        return self.count(args, kwargs).rows

    def count(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Data:
        """Count the data in a batch, and the data that its loss is scaled up to.

        Args:
            args: positional arguments of model and guide.
            kwargs: their keyword arguments.

        Raises:
            ValueError: the user's function returns no number of data.
        """
        if self._count is not None:
            rows = _require_number(self._count(*args))
            return Data(rows, rows)
        known = self._known.get(_shape((args, kwargs), _DEPTH))
        if known is not None:
            return known
        if length(args) == 0:
            return Data(0, 0)
        return self.learn(args, kwargs, look_at(self._svi, args, kwargs).model_trace)

    def learn(self, args: tuple[Any, ...], kwargs: dict[str, Any], model_trace: Trace) -> Data:
        """Keep, and return, the numbers of data of a batch on which the model has run."""
        data = data_in(model_trace)
        if data is None:
            data = Data(1, 1)
            if not self._warned and self._count is None:
                self._warned = True
                warn(
                    "the model has no plate, so that fit counts each batch as one datum, and ELBOs are nats per batch. "
                    'Put the data into pyro.plate("data", ...), or give fit(rows=lambda x: len(x)).'
                )
        if len(self._known) >= _MOST:
            self._known.pop(next(iter(self._known)))
        self._known[_shape((args, kwargs), _DEPTH)] = data
        return data


def data_in(model_trace: Trace) -> Data | None:
    """Count the data in the trace of a model; None where it has no plate.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model():
        ...     with pyro.plate("left", 10):
        ...         pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(10))
        ...     with pyro.plate("right", 90):
        ...         pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.zeros(90))
        >>> data_in(pyro.poutine.trace(model).get_trace())
        Data(rows=100, whole=100)
    """
    sites = [
        site
        for site in model_trace.nodes.values()
        if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample" and site["cond_indep_stack"]
    ]
    plates = {plate.name: _data_of(plate) for site in sites for plate in site["cond_indep_stack"]}
    if "data" in plates:
        return plates["data"]
    # Plates of latent variables alone, over components say, hold no data.
    stacks = [site["cond_indep_stack"] for site in sites if site["is_observed"]] or [
        site["cond_indep_stack"] for site in sites
    ]
    inner = {plate.name for stack in stacks for plate in stack[1:]}
    outer = dict.fromkeys(stack[0].name for stack in stacks)
    counts = [plates[name] for name in outer if name not in inner]
    if sum(count.rows for count in counts) == 0:
        return next((plates[name] for name in outer), None)
    return Data(sum(count.rows for count in counts), sum(count.whole for count in counts))


def _data_of(plate: Any) -> Data:
    return Data(int(plate.size), int(plate.size if plate.full_size is None else plate.full_size))


def _require_number(rows: Any) -> int:
    """Return what the user's function returned as an integer, whatever type of integer it is."""
    try:
        number = -1 if isinstance(rows, bool) or _is_boolean(rows) else operator.index(rows)
    except (TypeError, ValueError):
        number = -1
    if number < 0:
        raise ValueError(
            f"rows: expected a function that returns a number of data, got {rows!r} from it. "
            "Return an integer of at least 0, e.g. len(x)."
        )
    return number


def _is_boolean(value: Any) -> bool:
    return getattr(value, "dtype", None) in (torch.bool, np.dtype(bool))


def _is_integer(value: Any) -> bool:
    """Whether this is one integer (or truth value) of torch or numpy."""
    if getattr(value, "shape", None) != ():
        return False
    if isinstance(value, Tensor):
        return not (value.is_floating_point() or value.is_complex())
    return isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biu"


def _shape(value: Any, depth: int) -> Any:
    """What the number of data of a batch may depend on: shapes, lengths and integers, but no other value."""
    if _is_integer(value):
        return (type(value), int(value))
    if isinstance(value, Tensor):
        return value.shape
    kind = type(value)
    if kind is int or kind is bool:
        return value
    if isinstance(value, (tuple, list)):
        return (kind, *[_shape(item, depth) for item in value])
    if isinstance(value, dict):
        return (kind, *[(str(key), _shape(item, depth)) for key, item in value.items()])
    if isinstance(getattr(value, "shape", None), tuple):  # a numpy array
        return (kind, value.shape)
    if isinstance(value, (set, frozenset)):
        return (kind, len(value))
    attributes = getattr(value, "__dict__", None)
    if attributes and depth and not isinstance(value, (nn.Module, type)) and not callable(value):
        return (kind, *[(name, _shape(item, depth - 1)) for name, item in attributes.items()])
    return kind


def length(value: Any) -> int | None:
    """Return the length of the first tensor or array among arguments; None where there is none."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return shape[0] if shape else None
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return next((found for found in map(length, items) if found is not None), None)
