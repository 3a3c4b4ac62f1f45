"""What a captured graph depends on besides its inputs: the Python state that model, guide and objective read."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyro
import torch
from pyro.infer.elbo import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

_MISSING = object()
_LIBRARIES = {"torch", "pyro", "pyro_vae", "numpy", "scipy", "sklearn", "matplotlib", "tqdm"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


class Snapshot:
    """The plain values, tensors (by identity) and submodules that some functions can see, as they are now.

    Watched are the attributes of every ``nn.Module`` reached from the functions (training flags, parameters, buffers
    and submodules among them) or called while :func:`calls_of` listened, their closures, defaults and the globals they
    name, and where each parameter lives, whether it asks for a gradient, and its place in Pyro's store. The *contents*
    of lists, dictionaries and numpy arrays are not watched, nor what a helper object keeps under a name that the
    functions do not use.

    Args:
        functions: model, guide, objective.
        modules: further modules.
        params: unconstrained parameters by their name in Pyro's store.
    """

    def __init__(
        self,
        functions: Iterable[Any],
        modules: Iterable[nn.Module] = (),
        params: dict[str, Tensor] | None = None,
    ) -> None:
        self._values: list[tuple[Any, Any, Any, str]] = []  # (dictionary, key, value, whose)
        self._sizes: list[tuple[Any, int, str]] = []
        self._cells: list[tuple[types.CellType, Any, str]] = []
        self._seen: set[int] = set()
        self._keep: list[Any] = []  # an id stays unique only while its object lives
        for function in functions:
            self._walk(function)
        for module in modules:
            self._walk(module)
        self.params = dict(params or {})
        self._tensors: list[tuple[Tensor, int, torch.dtype, bool, str]] = []
        self.watch_tensors(self.params)
        # A module owns its parameters; a plain pyro.param lives in the store alone.
        self._stored = {name: p for name, p in self.params.items() if "$$$" not in name}

    def watch_values(self, entries: Iterable[tuple[dict[Any, Any], Any]], whose: str) -> None:
        """Watches further ``(dictionary, key)`` entries."""
        self._values += [(mapping, key, mapping.get(key, _MISSING), whose) for mapping, key in entries]

    def watch_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Watches where further tensors live, by a name for each."""
        self._tensors += [(t, t.data_ptr(), t.dtype, t.requires_grad, name) for name, t in tensors.items()]

    def change(self) -> str | None:
        """The first thing that differs from the snapshot, in words; None if nothing does."""
        for mapping, key, value, whose in self._values:
            now = mapping.get(key, _MISSING)
            if now is not value and not _equal(now, value):
                return f"{whose}: {key!r} was {_brief(value)} and is {_brief(now)}"
        for mapping, size, whose in self._sizes:
            if len(mapping) != size:
                return f"{whose}: had {size} attributes or hooks and has {len(mapping)}"
        for cell, value, whose in self._cells:
            now = _contents(cell)
            if now is not value and not _equal(now, value):
                return f"{whose}: a closed-over variable was {_brief(value)} and is {_brief(now)}"
        for p, address, dtype, requires_grad, name in self._tensors:
            if p.data_ptr() != address or p.dtype is not dtype or p.requires_grad is not requires_grad:
                return f"{name!r}: moved, cast, frozen or unfrozen"
        if self._stored:
            here = sum(self._stored.get(name) is p for name, p in pyro.get_param_store().named_parameters())
            if here != len(self._stored):
                return "Pyro's parameter store: a pyro.param was removed or replaced"
        return None

    def registered(self) -> bool:
        """Whether every parameter still has its entry in Pyro's store."""
        store = pyro.get_param_store()
        return all(name in store for name in self.params)

    # -- taking it -------------------------------------------------------------------------------------------------

    def _walk(self, thing: Any) -> None:
        if id(thing) in self._seen:
            return
        self._seen.add(id(thing))
        self._keep.append(thing)
        if isinstance(thing, nn.Module):
            self._walk_module(thing)
        elif isinstance(thing, types.MethodType):
            names = _names(thing.__func__.__code__) if isinstance(thing.__func__, types.FunctionType) else None
            self._walk_object(thing.__self__, names)
            self._walk(thing.__func__)
        elif isinstance(thing, types.FunctionType):
            self._walk_function(thing)
        elif isinstance(thing, functools.partial):
            for part in (thing.func, *thing.args, *thing.keywords.values()):
                self._walk(part)
        elif isinstance(thing, ELBO | Messenger):
            self._walk_object(thing, None)
        elif callable(thing) and not isinstance(thing, type | types.BuiltinFunctionType):
            self._walk_object(thing, None)
            call = getattr(type(thing), "__call__", None)  # noqa: B004 (the function itself is wanted)
            if isinstance(call, types.FunctionType):
                self._walk(call)

    def _walk_module(self, module: nn.Module) -> None:
        whose = type(module).__name__
        for name, value in vars(module).items():
            if _watched(value):
                self._values.append((vars(module), name, value, whose))
        for part in (module._parameters, module._buffers, module._modules):
            self._sizes.append((part, len(part), whose))
            for name, value in part.items():
                self._values.append((part, name, value, whose))
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            self._sizes.append((hooks, len(hooks), whose))
        for child in module.children():
            self._walk(child)

    def _walk_object(self, owner: Any, names: set[str] | None) -> None:
        """The attributes of an object that is no module: all of them, or those that a method's code names."""
        if isinstance(owner, nn.Module):
            self._walk(owner)
            return
        attributes = getattr(owner, "__dict__", None)
        if not isinstance(attributes, dict):
            return
        for name, value in attributes.items():
            if names is None or name in names:
                self._watch(attributes, name, value, type(owner).__name__)

    def _walk_function(self, function: types.FunctionType) -> None:
        whose = function.__qualname__
        if _is_library(function):  # a poutine around the user's function: look through its closure only
            names: set[str] = set()
        else:
            names = _names(function.__code__)
        for cell in function.__closure__ or ():
            value = _contents(cell)
            if _watched(value):
                self._cells.append((cell, value, whose))
            self._walk_value(value, names)
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._walk_value(value, names)
        for name in names & function.__globals__.keys():
            self._watch(function.__globals__, name, function.__globals__[name], whose)

    def _watch(self, mapping: dict[str, Any], name: str, value: Any, whose: str) -> None:
        if _watched(value):
            self._values.append((mapping, name, value, whose))
        self._walk_value(value, None)

    def _walk_value(self, value: Any, names: set[str] | None) -> None:
        if isinstance(value, types.FunctionType):
            if not _is_library(value) or value.__closure__:
                self._walk(value)
        elif isinstance(value, nn.Module | types.MethodType | functools.partial | Messenger | ELBO):
            self._walk(value)
        elif isinstance(value, list | tuple) and len(value) < 64:
            for part in value:
                if isinstance(part, nn.Module | types.FunctionType | types.MethodType):
                    self._walk_value(part, names)
        elif names and hasattr(value, "__dict__") and not isinstance(value, type | types.ModuleType | Tensor):
            attributes = vars(value)
            for name in names & attributes.keys():
                if _watched(attributes[name]):
                    self._values.append((attributes, name, attributes[name], type(value).__name__))


class calls_of:
    """Collects the modules that are called inside the ``with`` block."""

    def __enter__(self) -> list[nn.Module]:
        self._modules: dict[int, nn.Module] = {}

        def note(module: nn.Module, args: Any) -> None:
            self._modules[id(module)] = module

        self._handle = nn.modules.module.register_module_forward_pre_hook(note)
        self._list: list[nn.Module] = []
        return self._list

    def __exit__(self, *exception: Any) -> None:
        self._handle.remove()
        self._list.extend(self._modules.values())


def _watched(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(v, _PLAIN) for v in value)
    return isinstance(value, (*_PLAIN, Tensor, nn.Module, types.FunctionType, types.MethodType))


def _equal(now: Any, then: Any) -> bool:
    if type(now) is not type(then) or isinstance(now, Tensor | nn.Module):
        return False
    return bool(now == then)


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return _MISSING


def _names(code: types.CodeType) -> set[str]:
    """Globals and attributes that a function's code, and the functions in it, mention."""
    inner: Iterator[types.CodeType] = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*(_names(c) for c in inner))


def _is_library(function: Callable[..., Any]) -> bool:
    return (getattr(function, "__module__", None) or "").partition(".")[0] in _LIBRARIES


def _brief(value: Any) -> str:
    if value is _MISSING:
        return "missing"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} (at {value.data_ptr():#x})"
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
