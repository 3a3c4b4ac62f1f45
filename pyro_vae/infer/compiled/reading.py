"""Which values a function reads or binds outside: globals, closed-over variables and attributes that its code names."""

from __future__ import annotations

import builtins
import dis
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

__all__ = ["MISSING", "Read", "contents_of", "reads_of"]


class _Missing:
    def __repr__(self) -> str:
        return "missing"


MISSING: Any = _Missing()  # what stands where there is nothing, which None would not tell from a value of None

_UNSEEN = ("CACHE", "PUSH_NULL", "NOP", "RESUME", "COPY_FREE_VARS", "MAKE_CELL", "PRECALL", "EXTENDED_ARG", "KW_NAMES")
_LOCAL = ("LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_CLOSURE")


class Read(NamedTuple):
    """One read: where the value stands (``holder[key]``, or the contents of a cell), what it is, and whose it is."""

    holder: Any  # a dictionary, a class, a cell, or an object whose attribute needs getattr
    key: Any
    value: Any
    owner: Any  # the object that the attribute was asked of; None for globals and closed-over variables


class _Super(NamedTuple):
    """What ``super()`` gives."""

    cls: type
    owner: Any


def reads_of(function: types.FunctionType, self: Any = MISSING) -> Iterator[Read]:
    """Yield what a function's code, and that of functions inside it, reads or binds by name.

    Chains are followed: for ``self.cfg.beta`` the entry ``cfg`` of ``self`` and the entry ``beta`` of its value; so are
    local variables that stand for such a value (``cfg = self.cfg``), ``getattr(self, "beta")`` and ``super()``.

    Args:
        function: the function.
        self: the object that its first argument is, for a method.
    """
    known: dict[str, Any] = {}
    code = function.__code__
    if self is not MISSING and code.co_argcount:
        known[code.co_varnames[0]] = self
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=False))
    yield from _Reader(function.__globals__, cells, self).read(code, known)


class _Reader:
    """Follows code with a stack of the values that are known; all others are ``MISSING``."""

    def __init__(self, global_names: dict[str, Any], cells: dict[str, types.CellType], owner: Any) -> None:
        self._globals = global_names
        self._cells = cells
        self._owner = owner

    def read(self, code: types.CodeType, known: dict[str, Any]) -> Iterator[Read]:
        stack: list[Any] = []
        for instruction in dis.get_instructions(code):
            name, key = instruction.opname, instruction.argval
            if name in _UNSEEN:
                continue
            if name in ("LOAD_GLOBAL", "LOAD_NAME"):
                read = Read(self._globals, key, self._globals.get(key, MISSING), None)
                stack.append(getattr(builtins, key, MISSING) if read.value is MISSING else read.value)
                yield read
            elif name in _LOCAL:
                value = known.get(key, MISSING)
                if key in self._cells and key not in known:
                    value = contents_of(self._cells[key])
                    yield Read(self._cells[key], key, value, None)
                stack.append(value)
            elif name.startswith("LOAD_FAST") and isinstance(key, tuple):  # two at once
                stack += [known.get(each, MISSING) for each in key]
            elif name == "LOAD_CONST":
                stack.append(key)
            elif name in ("LOAD_ATTR", "LOAD_METHOD"):
                found = attribute(_pop(stack), key)
                stack.append(MISSING if found is None else found.value)
                if found is not None:
                    yield found
            elif name == "LOAD_SUPER_ATTR":  # super().name, from Python 3.12 on
                owner, cls, function = _pop(stack), _pop(stack), _pop(stack)
                known_super = function is super and isinstance(cls, type) and owner is not MISSING
                found = attribute(_Super(cls, owner), key) if known_super else None
                stack.append(MISSING if found is None else found.value)
                if found is not None:
                    yield found
            elif name == "STORE_ATTR":
                found, _ = written(_pop(stack), key), _pop(stack)
                if found is not None:
                    yield found
            elif name in ("STORE_FAST", "STORE_DEREF"):
                known[key] = _pop(stack)
            elif name == "SWAP" and len(stack) >= instruction.arg:  # type: ignore[operator]
                stack[-1], stack[-instruction.arg] = stack[-instruction.arg], stack[-1]  # type: ignore[operator]
            elif name == "BINARY_SUBSCR" and len(stack) >= 2:
                index, container = stack.pop(), stack.pop()
                stack.append(_item(container, index))
            elif name in ("CALL", "CALL_FUNCTION"):
                found = self._call(stack, instruction.arg or 0)
                if found is not None:
                    yield found
            else:
                stack.clear()
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                yield from self.read(constant, dict(known))

    def _call(self, stack: list[Any], count: int) -> Read | None:
        """Take a call off the stack; known are ``getattr`` with a name, and ``super()``."""
        args = [_pop(stack) for _ in range(count)][::-1]
        function = _pop(stack)
        result, found = MISSING, None
        if function is getattr and len(args) >= 2 and isinstance(args[1], str):
            found = attribute(args[0], args[1])
            result = MISSING if found is None else found.value
        elif function is super and not args and "__class__" in self._cells and self._owner is not MISSING:
            result = _Super(contents_of(self._cells["__class__"]), self._owner)
        if function is MISSING:
            stack.clear()
        stack.append(result)
        return found


def attribute(owner: Any, name: str) -> Read | None:
    """Where ``owner.name`` stands; None where that cannot be told."""
    if owner is MISSING or isinstance(owner, (Tensor, np.ndarray)):  # whose attributes are no state of the program
        return None
    if isinstance(owner, _Super):
        classes = type(owner.owner).__mro__
        later = classes[classes.index(owner.cls) + 1 :] if owner.cls in classes else ()
        return _in_classes(later, name, owner.owner)
    if isinstance(owner, types.ModuleType):
        return Read(vars(owner), name, vars(owner).get(name, MISSING), owner)
    if isinstance(owner, type):
        return _in_classes(owner.__mro__, name, owner)
    own = getattr(owner, "__dict__", None)
    if isinstance(own, dict):
        for part in (own, *(own.get(kind) or {} for kind in ("_parameters", "_buffers", "_modules"))):
            if isinstance(part, dict) and name in part:
                return Read(part, name, part[name], owner)
    found = _in_classes(type(owner).__mro__, name, owner)
    if found is not None and isinstance(found.value, (types.MemberDescriptorType, types.GetSetDescriptorType)):
        return Read(owner, name, getattr(owner, name, MISSING), owner)  # a slot
    return found


def written(owner: Any, name: str) -> Read | None:
    """Where ``owner.name = ...`` puts its value, and what stands there now."""
    own = getattr(owner, "__dict__", None)
    if owner is MISSING or isinstance(owner, (_Super, Tensor)) or not isinstance(own, dict):
        return None
    found = attribute(owner, name)
    return found if found is not None and isinstance(found.holder, dict) else Read(own, name, MISSING, owner)


def contents_of(cell: types.CellType) -> Any:
    """The value of a closed-over variable; ``MISSING`` where none is assigned yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


def _in_classes(classes: tuple[type, ...], name: str, owner: Any) -> Read | None:
    for base in classes:
        if name in vars(base):
            return Read(base, name, vars(base)[name], owner)
    return None


def _pop(stack: list[Any]) -> Any:
    return stack.pop() if stack else MISSING


def _item(container: Any, index: Any) -> Any:
    """The value of ``container[index]`` where both are known: a place in a list or tuple, a key of a dictionary."""
    if isinstance(container, (list, tuple)) and isinstance(index, int) and -len(container) <= index < len(container):
        return container[index]
    return container.get(index, MISSING) if type(container) is dict and isinstance(index, str) else MISSING
