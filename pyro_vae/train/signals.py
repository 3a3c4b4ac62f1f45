"""A polite stop: the first SIGINT or SIGTERM asks, the second one stops at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["PoliteStop"]


class PoliteStop:
    """While entered, the first SIGINT or SIGTERM only sets ``signal``; a second one does what it did before.

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
        self._process = os.getpid()

    def __enter__(self) -> PoliteStop:
        if self.enabled:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._put_back()

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
