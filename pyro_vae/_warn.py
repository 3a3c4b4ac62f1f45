"""Warnings that point at the user's line."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings

__all__ = ["warn"]

_PACKAGE = os.path.dirname(__file__) + os.sep
# Frames of these packages lie between a user's line and ours: handlers, decorators, context managers.
_BETWEEN = ("torch", "pyro", "tqdm")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the innermost line that is neither this package's, torch's, Pyro's nor a context manager's.

    Args:
        message: what happened, and what to do about it.
        category: class of the warning.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and _is_between(frame.f_code.co_filename, frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def _is_between(filename: str, module: str) -> bool:
    return filename.startswith(_PACKAGE) or filename == contextlib.__file__ or str(module).partition(".")[0] in _BETWEEN
