"""Return to the last state that was finite."""

from __future__ import annotations

from typing import Any

__all__ = ["LastGoodState"]

_TRIES = 3


class LastGoodState:
    """The state to return to after a step that was not finite, and how often that happened.

    Args:
        enabled: whether to return at all (``fit(on_nonfinite="restore")``).
    """

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.restores = 0
        self._state: dict[str, Any] | None = None

    def keep(self, state: dict[str, Any] | None) -> None:
        """Take a state for the one to return to."""
        if self.enabled and state is not None:
            self._state = state

    def restore(self, reason: Exception) -> dict[str, Any]:
        """Return the state to go back to.

        Raises:
            Exception: ``reason``, where restoring is not enabled or would not help.
            FloatingPointError: it was restored too often.
        """
        if not self.enabled or self._state is None or isinstance(reason, ValueError):  # bad data would come again
            raise reason
        if self.restores >= _TRIES:
            raise FloatingPointError(f"{reason}\nGiven up after {_TRIES} restores.")
        self.restores += 1
        return self._state

    def __str__(self) -> str:
        return f"restore {self.restores} of {_TRIES}"
