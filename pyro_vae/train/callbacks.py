"""What may happen beside training: the one interface, and the order and the safety of its calls."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..infer.distributed import rank

if TYPE_CHECKING:
    from .run import Run

__all__ = ["Callback", "Callbacks"]


class Callback:
    """Something to do at moments of a run: override the methods that you need.

    A plain function ``f(run)`` given to ``fit`` is called where ``epoch_end`` is.

    Order: as given to ``fit``, ``pyro_vae.Checkpoint`` after all others, so that it saves what they know; at ``end``
    the reverse. Exceptions: one in ``start`` ends the run before it began. Later ones are warned of, once for each
    callback, and training goes on: a failing logger does not lose the run. A callback with ``essential = True`` ends
    the run with its exception. To stop training from a callback, set ``run.stopping = True``. Where several processes
    train together, essential callbacks are called in each, all others (and ``Checkpoint``) in the first one alone.

    Attributes:
        essential: whether training cannot do without it.

    Example:
        >>> class Announce(Callback):
        ...     def epoch_end(self, run):
        ...         print(f"{run.epoch} of {run.epochs}: {run.history[-1]['train_elbo']:.1f} nats")
    """

    essential = False

    def start(self, run: Run) -> None:
        """Before the first step (after a resume: before the next one). ``run.parameters`` exist."""

    def step_end(self, run: Run) -> None:
        """After every optimiser step."""

    def epoch_end(self, run: Run) -> None:
        """After every epoch, its figures being in ``run.history``."""

    def end(self, run: Run) -> None:
        """Once, at the end, however it came: ``run.status`` is "finished", "interrupted" or "failed"."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold for this callback to go on: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``'s state."""


class _Function(Callback):
    def __init__(self, function: Callable[[Run], Any]) -> None:
        self.function = function

    def epoch_end(self, run: Run) -> None:
        self.function(run)

    def __repr__(self) -> str:
        return getattr(self.function, "__qualname__", repr(self.function))


class Callbacks:
    """The callbacks of a run, called in their order and with their failures contained.

    Args:
        callbacks: ``Callback`` instances and plain functions, as the user gave them.
        last: the class of those that go after all others.
    """

    def __init__(self, callbacks: Sequence[Any], last: type[Callback]) -> None:
        if not isinstance(callbacks, Sequence) or isinstance(callbacks, str):
            raise TypeError(
                f"callbacks: expected a list of pyro_vae.Callback instances and functions of a run, got {callbacks!r}. "
                "Put it into a list, callbacks=[...], or leave callbacks out."
            )
        hooks = [_as_callback(callback) for callback in callbacks]
        if rank() > 0:  # training depends on the essential ones in every process; the first one alone writes
            hooks = [hook for hook in hooks if hook.essential and not isinstance(hook, last)]
        self.hooks = sorted(hooks, key=lambda hook: isinstance(hook, last))
        # Asked after every step: those that do nothing there cost nothing there.
        self._each_step = [hook for hook in self.hooks if type(hook).step_end is not Callback.step_end]
        self._failed: set[int] = set()

    def start(self, run: Run) -> None:
        for hook in self.hooks:
            hook.start(run)

    def step_end(self, run: Run) -> None:
        for hook in self._each_step:
            self._call(hook, "step_end", run)

    def epoch_end(self, run: Run) -> None:
        for hook in self.hooks:
            self._call(hook, "epoch_end", run)

    def end(self, run: Run) -> None:
        for hook in reversed(self.hooks):
            self._call(hook, "end", run)

    def state(self) -> list[dict[str, Any]]:
        return [{"name": type(hook).__qualname__, "state": hook.state_dict()} for hook in self.hooks]

    def load_state(self, states: list[dict[str, Any]]) -> None:
        """Give each callback the state of the first of its kind that no other took; new callbacks begin anew."""
        waiting = list(states)
        for hook in self.hooks:
            mine = next((state for state in waiting if state["name"] == type(hook).__qualname__), None)
            if mine is not None:
                waiting.remove(mine)
                hook.load_state_dict(mine["state"])

    def _call(self, hook: Callback, moment: str, run: Run) -> None:
        try:
            getattr(hook, moment)(run)
        except Exception as error:
            if hook.essential:
                raise
            if id(hook) not in self._failed:
                self._failed.add(id(hook))
                warnings.warn(
                    f"callback {hook!r} failed in {moment} at step {run.step}: {type(error).__name__}: {error}. "
                    "Training goes on; further failures of this callback are not reported.",
                    RuntimeWarning,
                    stacklevel=2,
                )


def _as_callback(callback: Any) -> Callback:
    """A ``Callback`` as it is, a plain function as one that runs after every epoch."""
    if isinstance(callback, Callback):
        return callback
    if callable(callback) and not isinstance(callback, type):
        return _Function(callback)
    raise TypeError(
        f"callbacks: expected pyro_vae.Callback instances or functions of a run, got {callback!r}. "
        "Give a function, or an instance (CSVLog(path), not CSVLog)."
    )
