"""What a ``CompiledSVI`` says, each thing once."""

from __future__ import annotations

from ..._warn import warn
from .errors import CaptureError, CaptureWarning

__all__ = ["Words"]

_MOST = 8  # different reasons for leaving calls to Pyro that are said


class Words:
    """The warnings of one ``CompiledSVI``.

    Args:
        raising: whether a call that cannot be captured is an error.
    """

    def __init__(self, *, raising: bool) -> None:
        self.raising = raising
        self._said: set[str] = set()

    def once(self, message: str, category: type[Warning] = UserWarning) -> None:
        """Warn, unless this was said before."""
        if message not in self._said:
            self._said.add(message)
            warn(message, category)

    def leave(self, error: CaptureError) -> None:
        """Say that calls of a kind are left to Pyro, or raise."""
        if self.raising:
            raise error
        if len(self._said) < _MOST:
            self.once(
                f"{error} This program is left to Pyro, whose results are the same (on_refusal='raise' makes this an "
                "error, compile=False says that it is meant).",
                CaptureWarning,
            )
