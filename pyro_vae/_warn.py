"""Warnings that point at the user's own line."""

from __future__ import annotations

import sys
import warnings

__all__ = ["warn"]

_LIBRARIES = {"pyro_vae", "pyro", "torch", "contextlib", "tqdm"}


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the innermost line on the stack that belongs to none of the libraries through which it was reached.

    Args:
        message: what to say.
        category: class of the warning.
    """
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES and frame.f_back is not None:
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        category,
        filename=frame.f_code.co_filename,
        lineno=frame.f_lineno,
        module=frame.f_globals.get("__name__", "unknown"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )
