"""Checkpoint files: written so that a crash leaves a whole one, read without trusting them."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any

import torch

from ..._warn import warn
from .layout import require_layout
from .plain import plain
from .untrusted import require_safe

__all__ = ["checkpoints", "last_checkpoint", "read", "read_checkpoint", "step_of", "write"]

_KIND = "pyro_vae checkpoint"
_VERSION = 2
_NAME = re.compile(r"step-(\d+)\.pt")


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
    contents = plain(contents, "contents")
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
        The contents. The tensors are mapped from the file (but on Windows): they take memory once they are used, and
        what is written to them stays out of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, truncated, damaged, of another kind or version, asks for more memory than it has
            bytes, or holds more than tensors and plain values (a pickle that would run code).
    """
    contents = read(path)
    try:
        require_layout(contents)
    except ValueError as error:
        raise ValueError(
            f"{path}: expected a checkpoint, the file is damaged ({error}). Use an earlier one."
        ) from error
    return contents


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what ``write`` wrote, whatever it is; raises as ``read_checkpoint`` does."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a checkpoint, found no such file.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: expected a checkpoint, the file is empty. Use an earlier one.")
    require_safe(path)
    try:
        # Mapped, a tensor takes memory only once it is used, and a run uses those that fit its model.
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=os.name != "nt")
    except Exception as error:  # of whatever kind: the file need not be what it seems
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
    place = Path(place).expanduser()
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
    return sorted(
        (path for path in directory.glob("step-*.pt") if _NAME.fullmatch(path.name) and path.is_file()), key=step_of
    )


def step_of(path: Path) -> int:
    """Return the number of steps in the name of a checkpoint; -1 where it has none."""
    found = _NAME.fullmatch(path.name)
    return int(found[1]) if found else -1
