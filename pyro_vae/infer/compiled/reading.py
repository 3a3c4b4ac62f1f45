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
_DEPTH = 2  # calls within calls whose arguments are followed
_MOST = 64  # values that a loop's variable is followed for
_State = tuple[list[Any], dict[str, Any]]  # the values on the stack, and those of local variables
_LOCAL = ("LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_CLOSURE")


class Written(NamedTuple):
    """An entry of a container is written: ``container[key] = ...``."""

    container: Any


class _AnyOf:
    """One of several values: what a loop's variable stands for, or one that differs between two branches."""

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values = values


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
    known = dict(zip(names[: code.co_argcount], args, strict=False))
    known.update({name: value for name, value in keywords.items() if name in names})
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
        waiting: dict[int, list[_State]] = {}  # what is known where the code jumps to, by the place
        reached = True  # from the instruction before
        returned: Any = MISSING
        for instruction in dis.get_instructions(code):
            name, key = instruction.opname, instruction.argval
            arriving = waiting.pop(instruction.offset, [])
            if arriving:
                stack, known = _joined([*arriving, (stack, known)] if reached else arriving)
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
                returned = _either([returned, key if name == "RETURN_CONST" else _pop(stack)])
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
                for owner in _each(_pop(stack)):
                    found = attribute(owner, key)
                    if found is not None:
                        yield found
                        values.append((yield from self._value(found)))
                stack.append(_either(values))
            elif name == "LOAD_SUPER_ATTR":  # super().name, from Python 3.12 on
                owner, cls, function = _pop(stack), _pop(stack), _pop(stack)
                known_super = function is super and isinstance(cls, type) and owner is not MISSING
                found = attribute(Super(cls, owner), key) if known_super else None
                stack.append(MISSING if found is None else found.value)
                if found is not None:
                    yield found
            elif name == "STORE_ATTR":
                owners, _ = _each(_pop(stack)), _pop(stack)
                yield from filter(None, (written(owner, key) for owner in owners))
            elif name in ("STORE_FAST", "STORE_DEREF"):
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
            elif name == "STORE_SUBSCR":
                container = stack[-2] if len(stack) >= 2 else MISSING
                del stack[-3:]
                if isinstance(container, (dict, list, np.ndarray, collections.deque)):
                    yield Written(container)
            elif name == "GET_ITER":
                iterated = _pop(stack)
                stack.append(_either(iterated) if isinstance(iterated, (list, tuple)) else MISSING)
            elif name == "FOR_ITER":
                stack.append(_pop(stack))
            elif name == "UNPACK_SEQUENCE":
                wholes = [
                    whole for whole in _each(_pop(stack)) if isinstance(whole, (list, tuple)) and len(whole) == key
                ]
                stack += [_either([whole[i] for whole in wholes]) for i in reversed(range(instruction.arg or 0))]
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

    def _call(self, stack: list[Any], count: int, keywords: tuple[str, ...]) -> Iterator[Read | Written]:
        """Take a call off the stack; known are ``getattr`` with a name, ``super()``, and functions of Python code."""
        args = [_pop(stack) for _ in range(count)][::-1]
        function = _pop(stack)
        result: Any = MISSING
        if function in (getattr, hasattr) and len(args) >= 2 and isinstance(args[1], str):
            reads = [attribute(owner, args[1]) or absent(owner, args[1]) for owner in _each(args[0])]
            yield from filter(None, reads)
            result = _either([read.value for read in reads if read]) if function is getattr else MISSING
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
        if function is MISSING:
            stack.clear()
        stack.append(result)


def _each(value: Any) -> tuple[Any, ...]:
    """The values that one may be; none where it is not known."""
    return value.values if isinstance(value, _AnyOf) else () if value is MISSING else (value,)


def _either(values: Sequence[Any]) -> Any:
    """What is one of several values; of many, or of none, nothing is known."""
    distinct = {id(one): one for value in values for one in _each(value)}
    if len(distinct) == 1:
        return next(iter(distinct.values()))
    return _AnyOf(tuple(distinct.values())) if 0 < len(distinct) <= _MOST else MISSING


def _joined(states: list[_State]) -> _State:
    """What is known where several branches meet."""
    depth = min(len(stack) for stack, _ in states)
    stack = [_either(values) for values in zip(*(stack[len(stack) - depth :] for stack, _ in states), strict=True)]
    names = dict.fromkeys(name for _, known in states for name in known)
    return stack, {name: _either([known.get(name, MISSING) for _, known in states]) for name in names}


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
