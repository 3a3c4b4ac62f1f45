"""Stop politely: the first signal asks the run to stop, the second one ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

__all__ = ["PoliteStop", "StopRequested"]

T = TypeVar("T")

_GRACE = 0.5  # seconds within which a signal that ended a worker reaches this process too
_OF_OTHERS = [getattr(signal, name) for name in ("SIGHUP", "SIGUSR1") if hasattr(signal, name)]  # not on Windows
_SIGNALS = [signal.SIGINT, signal.SIGTERM, *_OF_OTHERS]


class StopRequested(Exception):
    """The run is asked to stop, and the next batch cannot be had."""


class PoliteStop:
    """While entered, the first signal only sets ``signal``; a second one does what it did before.

    The signals are SIGINT and SIGTERM, and, where nobody else handles them, SIGHUP (a terminal that closes) and SIGUSR1
    (by which clusters tell of the coming end). A signal that is ignored, as SIGHUP under ``nohup``, stays so.

    Ctrl-C in a terminal, and a scheduler that ends a group of processes, reach the workers of a data loader too, so
    that there may be no next batch: see ``fetch``.

    Handlers are installed in the main thread only, since Python allows no other, and put back at the end.

    Args:
        enabled: whether to install handlers at all.

    Attributes:
        signal: the signal that came, or ``None``.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled and threading.current_thread() is threading.main_thread()
        self.signal: int | None = None
        self._before: dict[int, Any] = {}
        self._torch_handler: Any = None  # torch's handler of SIGCHLD, which raises where a worker has died
        self._fetching = False
        self._child_ended = False  # whether a child ended while no batch was being fetched
        self._process = os.getpid()

    def __enter__(self) -> PoliteStop:
        if self.enabled:
            for number, handler in ((number, signal.getsignal(number)) for number in _SIGNALS):
                ours = handler is signal.SIG_DFL if number in _OF_OTHERS else handler is not signal.SIG_IGN
                if ours:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._put_back()

    def fetch(self, get: Callable[[], T]) -> T:
        """Call ``get``, which fetches a batch, and return its result.

        When a worker has died, torch raises an exception wherever the main thread is at the moment, be it in the middle
        of an update or of a checkpoint. It is held back until this method is called.

        Raises:
            StopRequested: ``get`` failed, and the run is asked to stop.
        """
        if not self.enabled:
            return get()
        self._fetching = True
        try:
            if self._child_ended:
                self._child_ended = False
                self._torch_handler(signal.SIGCHLD, None)
            return get()
        except Exception as error:
            self._fetching = False  # hold back the death of further workers
            deadline = time.monotonic() + _GRACE
            while self.signal is None and time.monotonic() < deadline:
                time.sleep(0.01)
            if self.signal is None:
                raise
            print(f"pyro_vae: no more batches ({type(error).__name__}: {error})", file=sys.stderr)
            raise StopRequested from error
        finally:
            self._fetching = False
            self._wrap_torch_handler()

    def _wrap_torch_handler(self) -> None:
        handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        if str(getattr(handler, "__module__", "")).startswith(
            "torch.utils.data."
        ):  # set when a loader first starts workers
            self._torch_handler = self._before[signal.SIGCHLD] = handler
            signal.signal(signal.SIGCHLD, self._handle_child)

    def _handle_child(self, number: int, frame: FrameType | None) -> None:
        if self._fetching:
            self._torch_handler(number, frame)
        else:
            self._child_ended = True

    def _put_back(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            # None: a handler that was not installed from Python. Python cannot put it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked worker of a data loader inherits this handler. It ignores Ctrl-C, which reaches the parent too,
            # and obeys SIGTERM, by which the parent ends it.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.signal is None:
            self.signal = number
            # Not print, which this handler may have interrupted.
            os.write(2, b"\nStopping after this step, with a checkpoint. A second signal stops at once.\n")
            return
        self._put_back()
        os.kill(self._process, number)
