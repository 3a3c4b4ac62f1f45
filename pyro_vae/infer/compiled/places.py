"""Where a value stands that code asks for by name: in an object, in its classes, in a slot, in a cell."""

from __future__ import annotations

import types
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

__all__ = ["MISSING", "Read", "Super", "absent", "attribute", "bound", "contents_of", "written"]


class _Missing:
    def __repr__(self) -> str:
        return "missing"


MISSING: Any = _Missing()  # what stands where there is nothing, which None would not tell from a value of None


class Read(NamedTuple):
    """One read: where the value stands (``holder[key]``, or the contents of a cell), what it is, and whose it is."""

    holder: Any  # a dictionary, a class, a cell, or an object whose attribute needs getattr
    key: Any
    value: Any
    owner: Any  # the object that the attribute was asked of; None for globals and closed-over variables


class Super(NamedTuple):
    """What ``super()`` gives."""

    cls: type
    owner: Any


def attribute(owner: Any, name: str) -> Read | None:
    """Where ``owner.name`` stands; None where that cannot be told."""
    if owner is MISSING or isinstance(owner, (Tensor, np.ndarray)):  # whose attributes are no state of the program
        return None
    if isinstance(owner, Super):
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
    if owner is MISSING or isinstance(owner, (Super, Tensor)):
        return None
    if isinstance(owner, type):
        return Read(owner, name, vars(owner).get(name, MISSING), owner)
    own, found = getattr(owner, "__dict__", None), attribute(owner, name)
    if found is not None and (isinstance(found.holder, dict) or found.holder is owner):  # or a slot
        return found
    return Read(own, name, MISSING, owner) if isinstance(own, dict) else None


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


def bound(read: Read) -> Any:
    """The value of an attribute; a function of the owner's class as the method that it becomes."""
    value, owner = read.value, read.owner
    if not isinstance(read.holder, type) or owner is None:
        return value
    if isinstance(value, staticmethod):
        return value.__func__
    if isinstance(value, classmethod):
        return types.MethodType(value.__func__, owner if isinstance(owner, type) else type(owner))
    return (
        types.MethodType(value, owner) if type(value) is types.FunctionType and not isinstance(owner, type) else value
    )


def absent(owner: Any, name: str) -> Read | None:
    """Where an attribute would stand that an object does not have yet."""
    own = getattr(owner, "__dict__", None)
    return Read(own, name, MISSING, owner) if owner is not MISSING and isinstance(own, dict) else None
