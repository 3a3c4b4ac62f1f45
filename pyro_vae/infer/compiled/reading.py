"""Which values a function reads or binds outside: globals, closed-over variables and attributes that its code names."""

from __future__ import annotations

import builtins
import collections
import dis
import sys
import types
from collections.abc import Generator, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from .branches import State, each_of, either, joined
from .places import MISSING, Read, Super, absent, attribute, bound, contents_of, written

__all__ = ["LIBRARIES", "Written", "reads_of", "reads_of_call"]


_UNSEEN = (
    "CACHE",
    "PUSH_NULL",
    "TO_BOOL",
    "NOT_TAKEN",
    "NOP",
    "RESUME",
    "COPY_FREE_VARS",
    "MAKE_CELL",
    "PRECALL",
    "EXTENDED_ARG",
    "KW_NAMES",
)
LIBRARIES = {"torch", "pyro", "pyro_vae", "numpy", "scipy", "sklearn", "matplotlib", "tqdm", "builtins", "math"}
LIBRARIES |= {"pytest", "_pytest", "pluggy"}  # pytest puts calls of its own into assertions
_DEPTH = 2  # calls within calls whose arguments are followed
_LOCAL = ("LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_CLOSURE")


class Written(NamedTuple):
    """An entry of a container is written: ``container[key] = ...``; or the data of a tensor are others."""

    container: Any


def reads_of(function: types.FunctionType, self: Any = MISSING) -> Iterator[Read | Written]:
    """Yield what a function's code, and that of functions inside it, reads or binds by name.

    Chains are followed: for ``self.cfg.beta`` the entry ``cfg`` of ``self`` and the entry ``beta`` of its value; so are
    local variables that stand for such a value (``cfg = self.cfg``), in either branch of an ``if``, what properties and
    the user's functions return, ``getattr(self, "beta")`` and ``super()``.

    Args:
        function: the function.
        self: the object that its first argument is, for a method.
    """
    yield from reads_of_call(function, [] if self is MISSING else [self], owner=self)


def reads_of_call(
    function: types.FunctionType,
    args: Sequence[Any],
    keywords: Mapping[str, Any] = MappingProxyType({}),
    *,
    owner: Any = MISSING,
    depth: int = 0,
) -> Generator[Read | Written, None, Any]:
    """Yield the same of a function that is called with these arguments, and return what it returns.

    ``MISSING`` stands for what is not known.
    """
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    defaults = function.__defaults__ or ()
    known = dict(zip(names[code.co_argcount - len(defaults) :], defaults, strict=False)) | (
        function.__kwdefaults__ or {}
    )
    known |= dict(zip(names[: code.co_argcount], args, strict=False))
    known |= {name: value for name, value in keywords.items() if name in names}
    known = {name: value for name, value in known.items() if value is not MISSING}
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=False))
    return (yield from _Reader(function.__globals__, cells, owner, depth).read(code, known))


class _Reader:
    """Follows code with a stack of the values that are known; all others are ``MISSING``."""

    def __init__(
        self, global_names: dict[str, Any], cells: dict[str, types.CellType], owner: Any, depth: int = 0
    ) -> None:
        self._globals = global_names
        self._cells = cells
        self._owner = owner
        self._depth = depth

    def read(self, code: types.CodeType, known: dict[str, Any]) -> Generator[Read | Written, None, Any]:
        stack: list[Any] = []
        keywords: tuple[str, ...] = ()  # of the call that follows
        waiting: dict[int, list[State]] = {}  # what is known where the code jumps to, by the place
        reached = True  # from the instruction before
        returned: Any = MISSING
        for instruction in dis.get_instructions(code):
            name, key = instruction.opname, instruction.argval
            arriving = waiting.pop(instruction.offset, [])
            if arriving:
                stack, known = joined([*arriving, (stack, known)] if reached else arriving)
            elif not reached:
                stack = []
            reached = True
            if name == "KW_NAMES":
                keywords = key if isinstance(key, tuple) else code.co_consts[instruction.arg or 0]
            if name in _UNSEEN:
                continue
            if name.startswith(("POP_JUMP", "JUMP")):
                conditional = "_IF_" in name
                before = list(stack)
                if conditional:
                    _pop(stack)
                if key > instruction.offset:
                    waiting.setdefault(key, []).append((before if "OR_POP" in name else list(stack), dict(known)))
                reached = conditional
            elif name in ("RETURN_VALUE", "RETURN_CONST"):
                returned = either([returned, key if name == "RETURN_CONST" else _pop(stack)])
                reached = False
            elif name in ("LOAD_GLOBAL", "LOAD_NAME"):
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
                values = []
                for owner in each_of(_pop(stack)):
                    found = attribute(owner, key)
                    if found is not None:
                        yield found
                        values.append((yield from self._value(found)))
                stack.append(either(values))
            elif name == "LOAD_SUPER_ATTR":  # super().name, from Python 3.12 on
                owner, cls, function = _pop(stack), _pop(stack), _pop(stack)
                known_super = function is super and isinstance(cls, type) and owner is not MISSING
                found = attribute(Super(cls, owner), key) if known_super else None
                stack.append(MISSING if found is None else found.value)
                if found is not None:
                    yield found
            elif name == "STORE_ATTR":
                owners, _ = each_of(_pop(stack)), _pop(stack)
                yield from self._store(owners, key)
            elif name == "STORE_GLOBAL":
                _pop(stack)
                yield Read(self._globals, key, self._globals.get(key, MISSING), None)
            elif name in ("STORE_FAST", "STORE_DEREF"):
                if name == "STORE_DEREF" and key in self._cells:
                    yield Read(self._cells[key], key, contents_of(self._cells[key]), None)
                known[key] = _pop(stack)
            elif name == "COPY" and len(stack) >= (instruction.arg or 0):
                stack.append(stack[-(instruction.arg or 1)])
            elif name == "POP_TOP":
                _pop(stack)
            elif name in ("BUILD_LIST", "BUILD_TUPLE"):
                stack.append(tuple([_pop(stack) for _ in range(instruction.arg or 0)][::-1]))
            elif name in ("BINARY_OP", "COMPARE_OP", "IS_OP", "CONTAINS_OP"):
                del stack[-2:]
                stack.append(MISSING)
            elif name == "BUILD_SLICE":
                del stack[-(instruction.arg or 0) :]
                stack.append(MISSING)
            elif name in ("STORE_SUBSCR", "STORE_SLICE"):
                place = 2 if name == "STORE_SUBSCR" else 3
                container = stack[-place] if len(stack) >= place else MISSING
                del stack[-place - 1 :]
                if isinstance(container, (dict, list, np.ndarray, collections.deque)):
                    yield Written(container)
            elif name == "GET_ITER":
                iterated = _pop(stack)
                stack.append(either(iterated) if isinstance(iterated, (list, tuple)) else MISSING)
            elif name == "FOR_ITER":
                stack.append(_pop(stack))
            elif name == "UNPACK_SEQUENCE":
                wholes = [
                    whole for whole in each_of(_pop(stack)) if isinstance(whole, (list, tuple)) and len(whole) == key
                ]
                stack += [either([whole[i] for whole in wholes]) for i in reversed(range(instruction.arg or 0))]
            elif name == "SWAP" and len(stack) >= instruction.arg:  # type: ignore[operator]
                stack[-1], stack[-instruction.arg] = stack[-instruction.arg], stack[-1]  # type: ignore[operator]
            elif name == "BINARY_SUBSCR" and len(stack) >= 2:
                index, container = stack.pop(), stack.pop()
                stack.append(_item(container, index))
            elif name in ("CALL", "CALL_FUNCTION", "CALL_KW"):
                if name == "CALL_KW":  # from Python 3.13 on
                    names = _pop(stack)
                    keywords = names if isinstance(names, tuple) else ()
                yield from self._call(stack, instruction.arg or 0, keywords)
                keywords = ()
            else:
                stack.clear()
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                yield from self.read(constant, dict(known))
        return returned

    def _value(self, found: Read) -> Generator[Read | Written, None, Any]:
        """The value of an attribute: of a property, what it returns."""
        get = found.value.fget if isinstance(found.value, property) else None
        if isinstance(get, types.FunctionType) and self._depth < _DEPTH and _is_users(get):
            return (yield from reads_of_call(get, [found.owner], depth=self._depth + 1))
        return bound(found)

    def _store(self, owners: Sequence[Any], name: str) -> Generator[Read | Written, None, Any]:
        """Where an attribute of an object is written, by its property where it has one."""
        for owner in owners:
            found = attribute(owner, name)
            put = found.value.fset if found is not None and isinstance(found.value, property) else None
            place = written(owner, name)
            if isinstance(put, types.FunctionType) and self._depth < _DEPTH and _is_users(put):
                yield from reads_of_call(put, [owner], depth=self._depth + 1)
            elif isinstance(owner, Tensor) and name == "data":
                yield Written(owner)
            elif place is not None:
                yield place

    def _call(self, stack: list[Any], count: int, keywords: tuple[str, ...]) -> Iterator[Read | Written]:
        """Take a call off the stack; known are ``getattr`` with a name, ``super()``, and functions of Python code."""
        args = [_pop(stack) for _ in range(count)][::-1]
        function = _pop(stack)
        result: Any = MISSING
        if function in (getattr, hasattr) and len(args) >= 2 and isinstance(args[1], str):
            reads = [attribute(owner, args[1]) or absent(owner, args[1]) for owner in each_of(args[0])]
            yield from filter(None, reads)
            result = either([read.value for read in reads if read]) if function is getattr else MISSING
        elif function is setattr and len(args) == 3 and isinstance(args[1], str):
            yield from self._store(each_of(args[0]), args[1])
        elif function is type and len(args) == 1:
            result = either([type(value) for value in each_of(args[0])])
        elif function is globals:
            result = self._globals
        elif function in (enumerate, zip, reversed, tuple, list) and all(
            isinstance(arg, (list, tuple)) for arg in args
        ):
            result = tuple(function(*args))
        elif isinstance(function, (types.FunctionType, types.MethodType)):
            named = dict(zip(keywords, args[len(args) - len(keywords) :], strict=False))
            args = args[: len(args) - len(keywords)]
            if isinstance(function, types.MethodType):
                args, function = [function.__self__, *args], function.__func__
            if self._depth < _DEPTH and isinstance(function, types.FunctionType) and _is_users(function):
                result = yield from reads_of_call(function, args, named, depth=self._depth + 1)
        elif function is super and not args and "__class__" in self._cells and self._owner is not MISSING:
            result = Super(contents_of(self._cells["__class__"]), self._owner)
        stack.append(result)


def _is_users(function: types.FunctionType) -> bool:
    name = (function.__module__ or "").partition(".")[0]
    return name not in LIBRARIES and name not in sys.stdlib_module_names


def _pop(stack: list[Any]) -> Any:
    return stack.pop() if stack else MISSING


def _item(container: Any, index: Any) -> Any:
    """The value of ``container[index]`` where both are known: a place in a list or tuple, a key of a dictionary."""
    if isinstance(container, (list, tuple)) and isinstance(index, int) and -len(container) <= index < len(container):
        return container[index]
    return container.get(index, MISSING) if type(container) is dict and isinstance(index, str) else MISSING
