"""Checkpoint files: written so that a crash leaves a whole one, read without trusting them."""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._warn import warn

__all__ = ["checkpoints", "last_checkpoint", "read_checkpoint", "step_of", "write"]

_KIND = "pyro_vae checkpoint"
_VERSION = 2
_NAME = re.compile(r"step-(\d+)\.pt")
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


def write(path: str | os.PathLike[str], contents: dict[str, Any]) -> None:
    """Write tensors and plain values so that at any instant ``path`` is either the old file or the new one, whole.

    The bytes go to a temporary file in the same directory, which is flushed to the disk and then renamed.

    Args:
        path: the file, replaced if it is there.
        contents: tensors and plain values, nested in dictionaries, lists and tuples.

    Raises:
        TypeError: a value of another kind, which could not be read back safely.
        OSError: the file cannot be written (disk full, read-only); then ``path`` is as it was.
    """
    path = Path(path)
    _require_plain(contents, "contents")
    # In memory first: torch.save raises a RuntimeError where the disk is full, file.write an OSError.
    buffer = io.BytesIO()
    torch.save({"kind": _KIND, "version": _VERSION, **contents}, buffer)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Flush the new name to the disk too. (Windows does not let a directory be opened.)"""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file that ``pyro_vae.Checkpoint`` wrote, its tensors on the CPU, without executing anything in it.

    Args:
        path: the file; it need not be trusted.

    Returns:
        The contents.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, truncated, damaged, foreign, of another version, or holds more than tensors and
            plain values (a pickle that would run code).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a checkpoint, found no such file.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: expected a checkpoint, the file is empty. Use an earlier one.")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"{path}: expected a checkpoint, the file is truncated or of another kind ({error}). Use an earlier one."
        ) from error
    if damaged is not None:
        raise ValueError(f"{path}: expected a whole checkpoint, {damaged} in it is damaged. Use an earlier one.")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: expected tensors and plain values only; the file holds other objects, whose loading could run "
            "code. Nothing was executed. Do not use this file unless you wrote it."
        ) from error
    except (RuntimeError, EOFError, KeyError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a checkpoint, the file is damaged or of another kind ({type(error).__name__}: {error})."
        ) from error
    if not isinstance(contents, dict) or contents.get("kind") != _KIND:
        raise ValueError(f"{path}: expected a checkpoint of pyro_vae, the file is of another kind.")
    if contents.get("version") != _VERSION:
        raise ValueError(
            f"{path}: expected a checkpoint of format {_VERSION}, got one of format {contents.get('version')!r}. Read "
            "it with the release of pyro_vae that wrote it."
        )
    return contents


def last_checkpoint(place: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest whole checkpoint of a directory (or the file itself), and its contents; None if there is none.

    Raises:
        ValueError: there are files, but none can be used.
    """
    place = Path(place)
    if place.is_file():
        return place, read_checkpoint(place)
    failures = []
    for path in reversed(checkpoints(place)):
        try:
            contents = read_checkpoint(path)
        except ValueError as error:
            failures.append(error)
            continue
        if failures:
            warn(f"{failures[0]} Going on from {path.name}.", RuntimeWarning)
        return path, contents
    if failures:
        raise failures[0]
    return None


def checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints of a directory but ``best.pt``, the oldest first."""
    return sorted((path for path in directory.glob("step-*.pt") if _NAME.fullmatch(path.name)), key=step_of)


def step_of(path: Path) -> int:
    """Return the number of steps in the name of a checkpoint; -1 where it has none."""
    found = _NAME.fullmatch(path.name)
    return int(found[1]) if found else -1


def _require_plain(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, _PLAIN):
                raise TypeError(f"{where}: expected plain keys, got {key!r}. Save names in place of objects.")
            _require_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            _require_plain(item, f"{where}[{position}]")
    elif not isinstance(value, (Tensor, *_PLAIN)):
        raise TypeError(
            f"{where}: expected tensors and plain values, got {type(value).__name__}, which a safe reader refuses. "
            "Leave it out, or save it as tensors and numbers."
        )
