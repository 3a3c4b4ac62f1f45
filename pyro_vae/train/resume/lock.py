"""One run at a time in a directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["locked"]

_HELD: set[Path] = set()  # by this process, to which the system would give the same lock again


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other runs out of a directory, which is made, until the end of the block or of this process.

    The lock is a record lock of the system on the file ``.lock``: it ends with its process, and a child does not
    inherit it. Where the system, or the disk's file system, has none, nothing is locked.

    Raises:
        ValueError: another run holds the lock.
        OSError: the directory cannot be made or written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    place = directory.resolve()
    if fcntl is None:
        yield
        return
    if place in _HELD:
        raise _in_use(directory, str(os.getpid()))
    with open(place / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise _in_use(directory, file.read().strip() or "unknown") from error
        except OSError:  # no locks here
            yield
            return
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        _HELD.add(place)
        try:
            yield
        finally:
            _HELD.discard(place)


def _in_use(directory: Path, process: str) -> ValueError:
    return ValueError(
        f"directory: expected one that no other run uses, process {process} writes checkpoints to {directory}. "
        "Wait for it, end it, or give another directory."
    )
