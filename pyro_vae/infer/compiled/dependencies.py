"""What a captured graph depends on besides its inputs: the Python state that model, guide and objective read."""

from __future__ import annotations

import collections
import collections.abc
import functools
import io
import random
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from pyro.infer.elbo import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from .errors import CaptureError
from .places import MISSING, Read, attribute, contents_of
from .reading import LIBRARIES, Written, reads_of, reads_of_call
from .watch import PLAIN, Watch

__all__ = ["calls_of", "dependencies_of"]

_MOVING = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random, collections.abc.Iterator)
# Attributes of torch's and Pyro's modules that are fixed when they are made, or that a run changes without an effect.
_FIXED = {
    *("in_features", "out_features", "in_channels", "out_channels", "num_features", "normalized_shape"),
    *("kernel_size", "stride", "padding", "dilation", "groups", "transposed", "output_padding", "padding_mode"),
    *("elementwise_affine", "affine", "inplace", "_is_full_backward_hook", "call_super_init", "dump_patches"),
}
_SMALL = 2**20  # bytes of an array that is looked at for what a step writes to it
_FEW = 32  # entries of a list or dictionary of plain values that is compared as a whole


def dependencies_of(
    functions: Iterable[Any], modules: Iterable[nn.Module] = (), params: dict[str, Tensor] | None = None
) -> Watch:
    """Return a watch over the Python values that some functions read.

    Watched are: what the code of the functions, and of the user's functions and methods that they call, reads by name
    (globals, closed-over variables, defaults, chains such as ``self.cfg.beta``); the attributes of every ``nn.Module``
    among these or called while :func:`calls_of` listened (training flags, parameters, buffers and submodules among
    them); lists and dictionaries of up to 32 plain values as a whole; the parameters. What else changes inside a list,
    a dictionary, an array or an object is found by the audit.

    Args:
        functions: model, guide, objective.
        modules: further modules.
        params: unconstrained parameters by their name in Pyro's store.

    Raises:
        CaptureError: the functions read a random number generator or an iterator, which a graph would freeze.
    """
    walk = _Walk(Watch(dict(params or {})))
    for function in functions:
        walk.follow(function, "the objective")
    for module in modules:
        walk.follow(module, type(module).__name__)
    return walk.watch


class calls_of:
    """Collect the modules that are called inside the ``with`` block."""

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


class _Walk:
    """From functions to what they read, each object once."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self._seen: set[Any] = set()
        self._keep: list[Any] = []  # an id stays unique only while its object lives

    def follow(self, value: Any, whose: str) -> None:
        """Watch what a value that the functions read leads to."""
        if isinstance(value, (*PLAIN, Tensor, type, types.ModuleType)):
            return
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        self._keep.append(value)
        if isinstance(value, _MOVING) and not isinstance(value, io.IOBase):
            raise CaptureError(
                f"{whose} reads a {type(value).__module__}.{type(value).__qualname__}, which moves on with every "
                "use; a graph would freeze what it gives. Draw with torch or pyro.sample, or pass what it gives as an "
                "argument."
            )
        if isinstance(value, torch.jit.ScriptModule):
            raise CaptureError(
                f"{whose} is a module of torch.jit, whose operations a graph cannot be sure to see. Use the module "
                "that it was made from."
            )
        if isinstance(value, nn.Module):
            self._follow_module(value)
        elif isinstance(value, types.MethodType):
            self.follow(value.__self__, whose)
            self._follow_code(value.__func__, value.__self__)
        elif isinstance(value, types.FunctionType):
            self._follow_code(value)
        elif isinstance(value, types.BuiltinMethodType):  # of a container: append = found.append
            self.follow(value.__self__, whose)
        elif isinstance(value, functools.partial):
            for part in (value.func, *value.args, *value.keywords.values()):
                self.follow(part, whose)
            for key, part in value.keywords.items():
                self._add(value.keywords, key, part, whose)
            self._follow_call(value.func, list(value.args), value.keywords)
        elif isinstance(value, (ELBO, Messenger)) or (callable(value) and _is_library(type(value))):
            public = {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_")}
            for key, part in public.items():
                self._read(Read(vars(value), key, part, value), type(value).__name__)
            self.follow(getattr(value, "__wrapped__", None), whose)  # of a functools.cache, say
        elif isinstance(value, (list, tuple, dict, set, collections.deque)):
            self._follow_container(value, whose)
        elif isinstance(value, np.ndarray):
            if value.nbytes <= _SMALL:
                self.watch.array(value)
        elif callable(value):
            self._follow_code(getattr(type(value), "__call__", None), value)  # noqa: B004 (the function is wanted)

    def _follow_container(self, value: Any, whose: str) -> None:
        parts = list(value.values()) if isinstance(value, dict) else list(value)
        if len(parts) > _FEW:
            if not isinstance(value, tuple):
                self.watch.growth(value, whose)
            return
        code = (nn.Module, types.FunctionType, types.MethodType, types.BuiltinFunctionType, type)
        if not isinstance(value, tuple) and all(isinstance(part, (*PLAIN, *code)) for part in parts):
            self.watch.contents(value, whose)
        elif not isinstance(value, tuple):
            self.watch.growth(value, whose)
        for part in parts:
            if isinstance(part, (*code, list, dict)):
                self.follow(part, whose)
        if isinstance(value, dict):
            for key, part in value.items():
                if isinstance(part, Tensor):
                    self._add(value, key, part, whose)

    def _follow_call(self, function: Any, args: list[Any], keywords: Mapping[str, Any]) -> None:
        """Look at what a function does with arguments that are known."""
        if isinstance(function, types.FunctionType) and not _is_library(function):
            for read in reads_of_call(function, args, keywords):
                self._read(read, function.__qualname__)

    def _follow_module(self, module: nn.Module) -> None:
        whose, library = type(module).__name__, _is_library(type(module))
        entries = vars(module)
        for key, value in entries.items():
            if library and (key in _FIXED or key.startswith("_cache")):
                continue
            plain = isinstance(value, tuple) and all(isinstance(part, PLAIN) for part in value)
            if plain or isinstance(value, (*PLAIN, types.FunctionType, types.MethodType, Tensor)):
                self._read(Read(entries, key, value, module), whose)
        for part in (module._parameters, module._buffers, module._modules):
            if part or not library:
                self.watch.size(part, whose)
            for key, value in part.items():
                self._add(part, key, value, whose)
                self.follow(value, whose)
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            self.watch.size(hooks, f"{whose}: hooks")
            for hook in hooks.values():
                self.follow(hook, f"{whose}: hooks")
        if module._backward_hooks or module._backward_pre_hooks:
            raise CaptureError(f"{whose} has a hook of its gradients, which a graph would not call. Leave it out.")
        self.watch.size(module._backward_hooks, f"{whose}: hooks of its gradients")
        self.watch.size(module._backward_pre_hooks, f"{whose}: hooks of its gradients")
        self._add(entries, "forward", entries.get("forward", MISSING), whose)
        forward = None if library else attribute(module, "forward")
        if forward is not None:
            self._read(forward, whose)

    def _follow_code(self, function: Any, self_: Any = MISSING) -> None:
        if hasattr(function, "__wrapped__"):
            self._follow_code(function.__wrapped__, self_)
        mark = (getattr(function, "__code__", None), id(self_), id(getattr(function, "__closure__", None)))
        if not isinstance(function, types.FunctionType) or mark in self._seen:
            return
        self._seen.add(mark)
        self._keep.append(self_)
        whose = function.__qualname__
        self.watch.function(function)
        for key, value in (function.__kwdefaults__ or {}).items():
            self._add(function.__kwdefaults__ or {}, key, value, whose)
            self.follow(value, f"{whose}: {key}")
        for value in function.__defaults__ or ():
            self.follow(value, whose)
        if _is_library(function):  # a handler around the user's function: look at what it closes over only
            for cell in function.__closure__ or ():
                self._read(Read(cell, "a closed-over variable", contents_of(cell), None), whose)
            return
        for read in reads_of(function, self_):
            self._read(read, whose)

    def _read(self, read: Read | Written, whose: str) -> None:
        if isinstance(read, Written):
            raise CaptureError(
                f"{whose} writes to an entry of a {type(read.container).__name__} that is there between steps; a graph "
                "would not. Return the value, or write it outside the step."
            )
        holder, key, value, owner = read
        if isinstance(holder, types.CellType):
            self.watch.cell(holder, value, f"{whose}: {key}")
        elif isinstance(holder, dict):
            if owner is not None and isinstance(owner, types.ModuleType) and _is_library(owner):
                return
            self._add(holder, key, value, whose)
        elif isinstance(holder, type):
            if _is_library(holder):
                return
            if ("class", id(holder), key) not in self._seen:
                self._seen.add(("class", id(holder), key))
                self.watch.attribute(holder, key, value, holder.__qualname__)
            own = getattr(owner, "__dict__", None)
            if isinstance(own, dict):  # an instance's own attribute of that name would come first
                self._add(own, key, MISSING, whose)
            self._follow_class_entry(value, owner)
            return
        else:
            self.watch.attribute(holder, key, value, whose)
        self.follow(value, f"{whose}: {key}")

    def _follow_class_entry(self, value: Any, owner: Any) -> None:
        """A method, a property or a plain value that stands in a class."""
        if isinstance(value, property):
            self._follow_code(value.fget, owner)
        elif isinstance(value, (staticmethod, classmethod)):
            self._follow_code(value.__func__, owner if isinstance(value, classmethod) else MISSING)
        elif isinstance(value, types.FunctionType):
            self._follow_code(value, MISSING if isinstance(owner, type) else owner)
        else:
            self.follow(value, type(owner).__name__)

    def _add(self, mapping: dict[Any, Any], key: Any, value: Any, whose: str) -> None:
        mark = (id(mapping), key)
        if mark not in self._seen and key not in ("__class__", "__builtins__"):
            self._seen.add(mark)
            self._keep.append(mapping)
            self.watch.entry(mapping, key, value, whose)


def _is_library(thing: Any) -> bool:
    name = thing.__name__ if isinstance(thing, types.ModuleType) else getattr(thing, "__module__", None)
    return (name or "").partition(".")[0] in LIBRARIES | sys.stdlib_module_names
