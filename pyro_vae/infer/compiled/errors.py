"""What cannot be captured, said with the user's line and the cure."""

from __future__ import annotations

import contextlib
import os
import traceback
from typing import Any

import pyro
import torch

__all__ = ["CaptureError", "CaptureWarning", "user_line"]

_ENGINE = os.path.dirname(os.path.dirname(__file__))
_MACHINERY = tuple(
    os.path.join(folder, "") for folder in (os.path.dirname(torch.__file__), os.path.dirname(pyro.__file__), _ENGINE)
)


_PYRO = os.path.join(os.path.dirname(pyro.__file__), "")
_CONTEXTLIB = contextlib.__file__


class CaptureError(RuntimeError):
    """A model, guide or objective that no graph can stand for, or whose graph no longer agrees with it."""


class CaptureWarning(UserWarning):
    """A program, or calls of one kind, that ``CompiledSVI`` leaves to Pyro, or a graph that it does not compile."""


def user_line(trace: Any = None) -> str:
    """Return the innermost line, as ``file:line ("text")``, that is neither torch's, Pyro's nor the engine's.

    Args:
        trace: traceback of an exception; by default the line that is running now.
    """
    frames = list(traceback.extract_tb(trace) if trace is not None else traceback.extract_stack())
    own = [f for f in frames if not f.filename.startswith((*_MACHINERY, "<", _CONTEXTLIB))]
    if not own:
        return "an unknown line"
    text = f'{own[-1].filename}:{own[-1].lineno} ("{(own[-1].line or "")[:100]}")'
    below = [f for f in frames[frames.index(own[-1]) :] if f.filename.startswith(_PYRO)]
    return f"{text}, inside Pyro's {os.path.relpath(below[-1].filename, _PYRO)}:{below[-1].lineno}" if below else text
