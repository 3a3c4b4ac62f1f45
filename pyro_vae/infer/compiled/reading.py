"""Which values a function reads from outside: the globals, closed-over variables and attributes that its code names."""

from __future__ import annotations

import dis
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["MISSING", "Read", "contents_of", "reads_of"]

MISSING: Any = None  # what ``dict.get`` says of a key that is not there

_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")
_LOCAL = ("LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW")


class Read(NamedTuple):
    """One read: where the value stands (``holder[key]``, or the contents of a cell), what it is, and whose it is."""

    holder: Any  # a dictionary, a class, a cell, or an object whose attribute needs getattr
    key: Any
    value: Any
    owner: Any  # the object that the attribute was asked of; None for globals and closed-over variables


def reads_of(function: types.FunctionType, self: Any = MISSING) -> Iterator[Read]:
    """Yield what a function's code, and that of functions inside it, reads by name.

    Chains are followed: for ``self.cfg.beta`` the entry ``cfg`` of ``self`` and the entry ``beta`` of its value. A
    local variable that stands for such a value (``cfg = self.cfg``) is followed too.

    Args:
        function: the function.
        self: the object that its first argument is, for a method.
    """
    known: dict[str, Any] = {}
    code = function.__code__
    if self is not MISSING and code.co_argcount:
        known[code.co_varnames[0]] = self
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=False))
    yield from _reads(code, function.__globals__, cells, known)


def _reads(
    code: types.CodeType, global_names: dict[str, Any], cells: dict[str, types.CellType], known: dict[str, Any]
) -> Iterator[Read]:
    value: Any = MISSING  # what stands on top of the stack, where that is known
    for instruction in dis.get_instructions(code):
        name, key = instruction.opname, instruction.argval
        if name in ("LOAD_GLOBAL", "LOAD_NAME"):
            read = _global(global_names, key)
            value = read.value
            yield read
        elif name in ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF") and key in cells:
            value = contents_of(cells[key])
            yield Read(cells[key], key, value, None)
        elif name in (*_LOCAL, "LOAD_DEREF"):
            value = known.get(key, MISSING)
        elif name == "LOAD_FAST_LOAD_FAST" or name == "LOAD_FAST_BORROW_LOAD_FAST_BORROW":
            value = known.get(key[1], MISSING)
        elif name in _ATTRIBUTE and value is not MISSING:
            found = attribute(value, key)
            value = MISSING if found is None else found.value
            if found is not None:
                yield found
        elif name == "STORE_FAST" and value is not MISSING:
            known[key] = value
            value = MISSING
        elif name not in ("CACHE", "PUSH_NULL", "NOP", "RESUME", "COPY_FREE_VARS", "MAKE_CELL"):
            if name == "STORE_FAST":
                known.pop(key, None)
            value = MISSING
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _reads(constant, global_names, cells, dict(known))


def attribute(owner: Any, name: str) -> Read | None:
    """Where ``owner.name`` stands; None where that cannot be told."""
    if isinstance(owner, types.ModuleType):
        return Read(vars(owner), name, vars(owner).get(name), owner)
    if isinstance(owner, type):
        return _in_class(owner, name, owner)
    own = getattr(owner, "__dict__", None)
    if isinstance(own, dict):
        for part in (own, *(own.get(kind) or {} for kind in ("_parameters", "_buffers", "_modules"))):
            if isinstance(part, dict) and name in part:
                return Read(part, name, part[name], owner)
    found = _in_class(type(owner), name, owner)
    if found is not None and isinstance(found.value, (types.MemberDescriptorType, types.GetSetDescriptorType)):
        return Read(owner, name, getattr(owner, name, MISSING), owner)  # a slot
    return found


def _in_class(cls: type, name: str, owner: Any) -> Read | None:
    for base in cls.__mro__:
        if name in vars(base):
            return Read(base, name, vars(base)[name], owner)
    return None


def _global(names: dict[str, Any], key: str) -> Read:
    return Read(names, key, names.get(key, MISSING), None)


def contents_of(cell: types.CellType) -> Any:
    """The value of a closed-over variable; ``MISSING`` where none is assigned yet."""
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return MISSING
