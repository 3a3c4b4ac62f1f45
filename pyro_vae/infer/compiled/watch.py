"""Python values as they were at one moment, and whether they have changed since."""

from __future__ import annotations

import collections
import contextlib
import enum
import itertools
import operator
import types
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from ..global_parameters import is_claimed
from .places import MISSING, contents_of

__all__ = ["PLAIN", "STORE", "Watch", "has_hooks"]

_FLAGS = operator.attrgetter("requires_grad", "_backward_hooks", "_post_accumulate_grad_hooks")
STORE = "Pyro's parameter store"  # whose change it is, in words
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, enum.Enum, np.generic)


class Watch:
    """Where values stand and what they were, kept so that looking whether all are the same costs little.

    Plain values are compared by value, all others by identity.

    Args:
        params: unconstrained parameters by their name in Pyro's store: watched are where each lives, whether it asks
            for a gradient, and, of a plain ``pyro.param``, its place in the store.
    """

    def __init__(self, params: dict[str, Tensor]) -> None:
        self._dicts: list[dict[Any, Any]] = []
        self._keys: list[Any] = []
        self._values: list[Any] = []
        self._owners: list[str] = []
        self._others: list[tuple[Any, Any, Any, str]] = []  # (class or object, attribute, value, whose)
        self._functions: list[types.FunctionType] = []
        self._parts: dict[str, list[Any]] = {name: [] for name in ("__code__", "__defaults__", "__kwdefaults__")}
        self._cells: list[tuple[types.CellType, Any, str]] = []
        self._contents: list[tuple[Any, Any, str]] = []  # (container, a copy of it, whose)
        self._copies: list[tuple[Any, Any]] = []  # (container, a copy of it), to put back
        self._sized: list[Any] = []
        self._sizes: list[int] = []
        self._sized_owners: list[str] = []
        self._names: list[str] = []
        self._tensors: list[Tensor] = []
        self._places: list[int] = []
        self._flags: list[tuple[Any, ...]] = []
        self.params = params
        self.tensors(params)
        # A module owns its parameters, and an AutoGlobalGuide too; a plain pyro.param lives in the store alone.
        own = {name: p for name, p in params.items() if "$$$" not in name and not is_claimed(p)}
        self._own_names, self._own = list(own), list(own.values())
        others = {name: p for name, p in params.items() if name not in own}
        self._module_names, self._of_modules = list(others), list(others.values())
        self._claimed = [name for name, p in others.items() if is_claimed(p)]

    def entry(self, mapping: dict[Any, Any], key: Any, value: Any, whose: str) -> None:
        """Watch ``mapping[key]``."""
        self._dicts.append(mapping)
        self._keys.append(key)
        self._values.append(value)
        self._owners.append(whose)

    def attribute(self, holder: Any, name: str, value: Any, whose: str) -> None:
        """Watch an entry of a class, or an attribute of an object without a dictionary."""
        self._others.append((holder, name, value, whose))

    def function(self, function: types.FunctionType) -> None:
        """Watch a function's code, which notebooks reload in place, and its defaults."""
        self._functions.append(function)
        for name, values in self._parts.items():
            values.append(getattr(function, name))

    def cell(self, cell: types.CellType, value: Any, whose: str) -> None:
        """Watch a closed-over variable."""
        self._cells.append((cell, value, whose))

    def contents(self, container: Any, whose: str) -> None:
        """Watch all of a list or dictionary of plain values."""
        self._contents.append((container, container.copy(), whose))

    def growth(self, container: Any, whose: str) -> None:
        """Watch how many entries a list, dictionary or set has, and put them back with :meth:`restore`."""
        self.size(container, whose)
        self._copies.append((container, container.copy()))

    def array(self, array: Any) -> None:
        """Keep what a numpy array holds, for :meth:`writes` and :meth:`restore`."""
        self._copies.append((array, array.copy()))

    def size(self, container: Any, whose: str) -> None:
        """Watch the number of entries of a dictionary."""
        self._sized.append(container)
        self._sizes.append(len(container))
        self._sized_owners.append(whose)

    def tensors(self, tensors: dict[str, Tensor]) -> None:
        """Watch where tensors live and whether they ask for a gradient, by a name for each."""
        self._names += tensors.keys()
        self._tensors += tensors.values()
        self._places += [t.data_ptr() for t in tensors.values()]
        self._flags += map(_FLAGS, tensors.values())

    def change(self) -> str | None:
        """Return the first thing that differs, in words; None if nothing does."""
        if not all(map(operator.is_, map(dict.get, self._dicts, self._keys, itertools.repeat(MISSING)), self._values)):
            for i, (mapping, key) in enumerate(zip(self._dicts, self._keys, strict=True)):
                now, then = mapping.get(key, MISSING), self._values[i]
                if now is not then:
                    if not _equal(now, then):
                        return f"{self._owners[i]}: {key!r} was {_brief(then)} and is {_brief(now)}"
                    self._values[i] = now
        if list(map(len, self._sized)) != self._sizes:
            for mapping, size, whose in zip(self._sized, self._sizes, self._sized_owners, strict=True):
                if len(mapping) != size:
                    return f"{whose}: had {size} entries and has {len(mapping)}"
        for container, then, whose in self._contents:
            if len(container) != len(then) or container != then:
                return f"{whose} was {_brief(then)} and is {_brief(container)}"
        for holder, key, then, whose in self._others:
            now = _attribute(holder, key)
            if now is not then and not _equal(now, then):
                return f"{whose}: {key!r} was {_brief(then)} and is {_brief(now)}"
        for name, values in self._parts.items():
            if not all(map(operator.is_, map(operator.attrgetter(name), self._functions), values)):
                for function, then in zip(self._functions, values, strict=True):
                    now = getattr(function, name)
                    if now is not then and not _equal(now, then):
                        return f"{function.__qualname__}: {name} was {_brief(then)} and is {_brief(now)}"
        for cell, then, whose in self._cells:
            now = contents_of(cell)
            if now is not then and not _equal(now, then):
                return f"{whose} was {_brief(then)} and is {_brief(now)}"
        if [t.data_ptr() for t in self._tensors] != self._places:
            return f"{self._moved()!r}: moved or cast"
        if list(map(_FLAGS, self._tensors)) != self._flags:
            return "a parameter was frozen or unfrozen, or got a gradient hook"
        stored = _stored()
        if self._own and not all(map(operator.is_, map(stored.get, self._own_names), self._own)):
            return f"{STORE}: a pyro.param was removed or replaced"
        if not all(is_claimed(stored[name]) for name in self._claimed if name in stored):
            return f"{STORE}: a parameter of an autoguide was loaded"
        return None

    def writes(self) -> str | None:
        """Return what differs in containers and arrays, whose contents :meth:`change` does not compare."""
        for container, then in self._copies:
            if _held(container) != _held(then):
                return f"the contents of a {type(container).__name__}"
        return None

    def restore(self) -> None:
        """Put back what a run has changed since."""
        for mapping, key, then in zip(self._dicts, self._keys, self._values, strict=True):
            if mapping.get(key, MISSING) is then:
                continue
            if then is MISSING:
                del mapping[key]
            else:
                mapping[key] = then
        for holder, key, then, _ in self._others:
            if _attribute(holder, key) is not then and then is not MISSING:
                with contextlib.suppress(AttributeError, TypeError):  # what cannot be set cannot have been bound
                    setattr(holder, key, then)
        for name, values in self._parts.items():
            for function, then in zip(self._functions, values, strict=True):
                if getattr(function, name) is not then:
                    setattr(function, name, then)
        for cell, then, _ in self._cells:
            if contents_of(cell) is then:
                continue
            if then is MISSING:
                del cell.cell_contents
            else:
                cell.cell_contents = then
        for container, then in (*((c, t) for c, t, _ in self._contents), *self._copies):
            if isinstance(container, (dict, set)):
                container.clear()
                container.update(then)
            elif isinstance(container, collections.deque):
                container.clear()
                container.extend(then)
            elif not isinstance(container, np.ndarray):
                container[:] = then
            elif _held(container) != _held(then):
                container[...] = then

    def leaves(self) -> list[Tensor]:
        """Return the tensors that are read by name, and no parameters, and that a step would give gradients."""
        own = {id(p) for p in self.params.values()}
        read = [*self._values, *(value for _, value, _ in self._cells), *(value for _, _, value, _ in self._others)]
        leaves = {id(t): t for t in read if isinstance(t, Tensor) and t.requires_grad and t.is_leaf}
        return [t for place, t in leaves.items() if place not in own]

    def registered(self) -> bool:
        """Whether every parameter still has its entry in Pyro's store."""
        return self.params.keys() <= _stored().keys()

    def register(self) -> None:
        """Put modules' parameters back in their places in the store, as ``pyro_vae.module`` does in each step.

        Another module of the same name may have taken them, or what was loaded into the store.
        """
        stored = _stored()
        if all(map(operator.is_, map(stored.get, self._module_names), self._of_modules)):
            return
        names = pyro.get_param_store()._param_to_name
        for name, p in zip(self._module_names, self._of_modules, strict=True):
            other = stored[name]
            if other is not p:
                if names.get(other) == name:
                    del names[other]
                stored[name] = p
                names[p] = name

    def _moved(self) -> str:
        pairs = zip(self._names, self._tensors, self._places, strict=True)
        return next((name for name, t, place in pairs if t.data_ptr() != place), "")


def _stored() -> dict[str, Tensor]:
    return pyro.get_param_store()._params


def has_hooks(tensor: Tensor) -> bool:
    """Whether a function is called with a tensor's gradient."""
    return any(bool(hooks) for hooks in _FLAGS(tensor)[1:])


def _attribute(holder: Any, name: str) -> Any:
    return vars(holder).get(name, MISSING) if isinstance(holder, type) else getattr(holder, name, MISSING)


def _equal(now: Any, then: Any) -> bool:
    if type(now) is not type(then):
        return False
    if isinstance(now, types.MethodType):
        return now.__self__ is then.__self__ and now.__func__ is then.__func__
    if isinstance(now, tuple):
        return len(now) == len(then) and all(a is b or _equal(a, b) for a, b in zip(now, then, strict=True))
    return isinstance(now, PLAIN) and bool(now == then)


def _held(container: Any) -> Any:
    """What a container or an array holds, to be compared: objects by what they are."""
    if isinstance(container, np.ndarray):
        return container.tobytes()
    if isinstance(container, dict):
        return {key: id(value) for key, value in container.items()}
    return set(map(id, container)) if isinstance(container, set) else list(map(id, container))


def _brief(value: Any) -> str:
    if value is MISSING:
        return "missing"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} (at {value.data_ptr():#x})"
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
