"""A polite stop: the first SIGINT or SIGTERM asks, the second one stops at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

__all__ = ["Interrupted", "PoliteStop"]

T = TypeVar("T")

_GRACE = 0.5  # seconds: what ends a worker reaches this process at about the same time


class Interrupted(Exception):
    """A batch could not be had, of a run that is asked to stop anyway."""


class PoliteStop:
    """While entered, the first SIGINT or SIGTERM only sets ``signal``; a second one does what it did before.

    Ctrl-C, and whoever ends a whole group of processes, reaches the workers of a data loader too, and batches come to
    an end before the run has: see ``fetch``.

    Handlers are installed in the main thread only (Python allows no other), and put back at the end.

    Args:
        enabled: whether to listen at all.

    Attributes:
        signal: the signal that came, or ``None``.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled and threading.current_thread() is threading.main_thread()
        self.signal: int | None = None
        self._before: dict[int, Any] = {}
        self._torchs_handler: Any = None  # of SIGCHLD; it raises where a worker of a data loader has died
        self._fetching = False
        self._child_ended = False  # while no batch was being fetched
        self._process = os.getpid()

    def __enter__(self) -> PoliteStop:
        if self.enabled:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._put_back()

    def fetch(self, get: Callable[[], T]) -> T:
        """What ``get``, which fetches a batch, returns; only here does torch say that a worker died.

        Torch raises that wherever the main thread is at the moment: in the middle of an update, or of a checkpoint.
        Here it waits until the next batch is wanted.

        Raises:
            Interrupted: ``get`` failed, and the run is asked to stop.
        """
        if not self.enabled:
            return get()
        self._fetching = True
        try:
            if self._child_ended:
                self._child_ended = False
                self._torchs_handler(signal.SIGCHLD, None)
            return get()
        except Exception as error:
            self._fetching = False  # of one death at a time
            deadline = time.monotonic() + _GRACE
            while self.signal is None and time.monotonic() < deadline:
                time.sleep(0.01)
            if self.signal is None:
                raise
            print(f"pyro_vae: no more batches ({type(error).__name__}: {error})", file=sys.stderr)
            raise Interrupted from error
        finally:
            self._fetching = False
            self._wrap_torchs_handler()

    def _wrap_torchs_handler(self) -> None:
        handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        if str(getattr(handler, "__module__", "")).startswith("torch.utils.data."):  # set by the first loader's workers
            self._torchs_handler = self._before[signal.SIGCHLD] = handler
            signal.signal(signal.SIGCHLD, self._handle_child)

    def _handle_child(self, number: int, frame: FrameType | None) -> None:
        if self._fetching:
            self._torchs_handler(number, frame)
        else:
            self._child_ended = True

    def _put_back(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            # None: a handler that was not installed from Python, and cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked worker of a data loader inherits this handler: Ctrl-C reaches it too, and is the parent's
            # business; SIGTERM is how the parent ends it.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.signal is None:
            self.signal = number
            # Not print: a handler may have interrupted a print.
            os.write(2, b"\nStopping after this step, with a checkpoint. A second signal stops at once.\n")
            return
        self._put_back()
        os.kill(self._process, number)
