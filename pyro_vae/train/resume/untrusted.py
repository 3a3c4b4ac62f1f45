"""Look through a file that need not be trusted, before anything in it is loaded."""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .plain import DTYPES

__all__ = ["require_safe"]

_DEPTH = 72  # levels of dictionaries, lists and tuples

# The instructions of a pickle that torch.save writes for tensors and plain values: those that build numbers, strings
# and containers, and REDUCE, which calls one of the few functions below.
_INSTRUCTIONS = {
    *("PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BINPERSID", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"),
    *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
}


def require_safe(path: Path) -> None:
    """Refuse a file that is damaged, would run code, or asks for more memory than it has bytes.

    Raises:
        ValueError: with the reason.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _look_through(archive, path)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError) as error:
        raise ValueError(
            f"{path}: expected a checkpoint, the file is truncated or of another kind ({error}). Use an earlier one."
        ) from error


class _Storage(NamedTuple):
    """The bytes of a tensor, which are not read."""

    itemsize: int
    number: int


def _look_through(archive: zipfile.ZipFile, path: Path) -> None:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) != len(archive.infolist()) or any(e.compress_type != zipfile.ZIP_STORED for e in entries.values()):
        raise ValueError(f"{path}: expected a checkpoint, the file is of another kind: its contents are compressed.")
    if sum(entry.file_size for entry in entries.values()) > path.stat().st_size:
        raise ValueError(
            f"{path}: expected a whole checkpoint, the file is damaged: it claims to be larger than it is."
        )
    damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{path}: expected a whole checkpoint, {damaged} in it is damaged. Use an earlier one.")
    names = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(names) != 1:
        raise ValueError(f"{path}: expected a checkpoint, the file is of another kind: {len(names)} data.pkl in it.")
    folder = names[0].removesuffix("data.pkl")
    sizes = {
        name.removeprefix(f"{folder}data/"): entry.file_size
        for name, entry in entries.items()
        if name.startswith(f"{folder}data/")
    }
    try:
        _look_through_pickle(archive.read(names[0]), sizes)
    except _Foreign as error:
        raise ValueError(
            f"{path}: expected tensors and plain values only; the file holds other objects ({error}), whose loading "
            "could run code. Nothing was executed. Do not use this file unless you wrote it."
        ) from error
    except Exception as error:  # of whatever kind: the file is hostile
        raise ValueError(
            f"{path}: expected a checkpoint, the file is damaged ({type(error).__name__}: {error})."
        ) from error


class _Foreign(Exception):
    """Something else than tensors and plain values."""


def _look_through_pickle(data: bytes, sizes: dict[str, int]) -> None:
    count = 0
    for instruction, argument, _ in pickletools.genops(data):
        count += 1
        if instruction.name not in _INSTRUCTIONS:
            raise _Foreign(instruction.name)
        if instruction.name == "LONG_BINPUT" and int(argument or 0) > len(
            data
        ):  # an index of a table that Python would allocate
            raise ValueError(f"an index of {argument}")
    value = _Sizes(data, sizes).load()
    # Containers that share parts may be exponentially larger than the file.
    seen, level = 0, [value]
    for _ in range(_DEPTH):
        inner: list[Any] = []
        for item in level:
            inner += [*item.keys(), *item.values()] if isinstance(item, dict) else item if _is_list(item) else ()
            if seen + len(inner) > 2 * count:
                raise ValueError("its contents are larger than the file")
        seen += len(inner)
        level = inner
    if level:
        raise ValueError(f"more than {_DEPTH} levels")


def _is_list(value: Any) -> bool:
    return type(value) in (list, tuple)


class _Sizes(pickle.Unpickler):
    """Builds the contents with a number in place of each tensor, whose size it compares with that in the file."""

    def __init__(self, data: bytes, sizes: dict[str, int]) -> None:
        super().__init__(io.BytesIO(data))
        self._sizes = sizes
        self._used: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _check_tensor
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return name
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): tuple,
            ("torch", "device"): _nothing,
            ("builtins", "complex"): complex,
            ("__builtin__", "complex"): complex,  # its name in the protocol that torch.save uses
            ("_codecs", "encode"): _nothing,
        }
        if (module, name) not in known:
            raise _Foreign(f"{module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _, number = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(number) is not int or number < 0:
            raise ValueError(f"a storage {pid!r}")
        itemsize = torch.empty((), dtype=dtype).element_size()
        if number * itemsize != self._sizes.get(key, 0 if number == 0 else -1):
            raise ValueError(f"a tensor of {number * itemsize} bytes, of which {self._sizes.get(key)} are in the file")
        if key in self._used:
            raise ValueError("two tensors in the same place")
        self._used.add(key)
        return _Storage(itemsize, number)


def _check_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> int:
    """Refuse a tensor that has more elements than its storage, or elements outside it."""
    numbers = (offset, *size, *stride)
    if (
        not isinstance(storage, _Storage)
        or len(size) != len(stride)
        or any(type(n) is not int or n < 0 for n in numbers)
    ):
        raise ValueError(f"a tensor of size {size}")
    elements = 1
    for length in size:
        elements *= length
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) if elements else 0
    if elements > storage.number or last >= max(storage.number, 1):
        raise ValueError(f"a tensor of size {tuple(size)} in a storage of {storage.number} elements")
    return 0


def _nothing(*_: Any) -> None:
    """Stands for a harmless function, which is not called."""
