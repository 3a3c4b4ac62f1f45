"""Call callbacks in their order, and contain their failures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..._warn import warn
from ...infer.distributed.processes import rank
from ..run import Run
from .base import Callback

__all__ = ["Dispatch"]


class Dispatch:
    """The callbacks of a run.

    Args:
        callbacks: ``Callback`` instances and plain functions, as the user gave them.
        last: the class of those that are called after all others.
    """

    def __init__(self, callbacks: Sequence[Any], last: type[Callback]) -> None:
        if not isinstance(callbacks, Sequence) or isinstance(callbacks, str):
            raise TypeError(
                f"callbacks: expected a list of pyro_vae.Callback instances and functions of a run, got {callbacks!r}. "
                "Put it into a list, callbacks=[...], or leave callbacks out."
            )
        ordered = sorted(map(_as_callback, callbacks), key=lambda callback: isinstance(callback, last))
        if rank() > 0:  # all processes need the essential ones; the first process alone writes files
            ordered = [callback for callback in ordered if callback.essential and not isinstance(callback, last)]
        self.callbacks = ordered
        # Most callbacks do nothing after a step; then they cost nothing there.
        self._each_step = [callback for callback in ordered if type(callback).step_end is not Callback.step_end]
        self._failed: set[int] = set()

    def start(self, run: Run) -> None:
        """Call each callback's ``start``."""
        for callback in self.callbacks:
            callback.start(run)

    def step_end(self, run: Run) -> None:
        """Call each callback's ``step_end``."""
        for callback in self._each_step:
            self._call(callback, "step_end", run)

    def epoch_end(self, run: Run) -> None:
        """Call each callback's ``epoch_end``."""
        for callback in self.callbacks:
            self._call(callback, "epoch_end", run)

    def end(self, run: Run) -> None:
        """Call each callback's ``end``, the last one's first."""
        for callback in reversed(self.callbacks):
            self._call(callback, "end", run)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return name and state of each callback."""
        return [{"name": type(callback).__qualname__, "state": callback.state_dict()} for callback in self.callbacks]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Give each callback the first state of its class that no other callback took; one without begins anew."""
        remaining = list(states)
        for callback in self.callbacks:
            own = next((state for state in remaining if state["name"] == type(callback).__qualname__), None)
            if own is not None:
                remaining.remove(own)
                callback.load_state_dict(own["state"])

    def _call(self, callback: Callback, moment: str, run: Run) -> None:
        try:
            getattr(callback, moment)(run)
        except Exception as error:
            if callback.essential:
                raise
            if id(callback) not in self._failed:
                self._failed.add(id(callback))
                warn(
                    f"callback {callback!r} failed in {moment} at step {run.step}: {type(error).__name__}: {error}. "
                    "Training goes on; further failures of this callback are not reported.",
                    RuntimeWarning,
                )


class Function(Callback):
    """A plain function, called after every epoch."""

    def __init__(self, function: Callable[[Run], Any]) -> None:
        self.function = function

    def epoch_end(self, run: Run) -> None:
        self.function(run)

    def __repr__(self) -> str:
        return getattr(self.function, "__qualname__", repr(self.function))


def _as_callback(callback: Any) -> Callback:
    if isinstance(callback, Callback):
        return callback
    if callable(callback) and not isinstance(callback, type):
        return Function(callback)
    raise TypeError(
        f"callbacks: expected pyro_vae.Callback instances or functions of a run, got {callback!r}. "
        "Give a function, or an instance (CSVLog(path), not CSVLog)."
    )
