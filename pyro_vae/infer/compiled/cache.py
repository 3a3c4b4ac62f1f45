"""The graphs that one ``CompiledSVI`` keeps, each for the calls that it stands for."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from ..._warn import warn
from .captured_step import CapturedStep
from .errors import CaptureError, CaptureWarning
from .watch import STORE, Watch

__all__ = ["Cache"]

_CHANGES = 3  # times that what a kind of call reads has changed before its capture, after which it is refused
_REFUSALS = 8  # kinds of calls refused, and none captured, after which no further one is tried


class Cache:
    """Captured graphs by the key of a call, and what is known of keys that may become one.

    Args:
        most: how many graphs are kept.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: dict[Hashable, list[CapturedStep]] = {}
        self._seen: dict[Hashable, Watch] = {}  # keys that Pyro ran last, and what that run read
        self._refused: set[Hashable] = set()
        self._programs: dict[Hashable, Any] = {}  # kept alive, as keys tell them apart by their places in memory
        self._changes: dict[Hashable, int] = {}
        self._new_keys = 0
        self._said_full = False

    def __len__(self) -> int:
        return sum(len(graphs) for graphs in self._kept.values())

    def counts(self) -> dict[Hashable, int]:
        """How many calls of each kind were made, the one that Pyro ran before the capture included."""
        seen = dict.fromkeys(self._seen, 1)
        return seen | {key: 1 + graphs[-1].calls for key, graphs in self._kept.items() if graphs}

    def find(self, key: Hashable, program: Any) -> CapturedStep | None:
        """Return the graph that stands for such a call of a program as things are now."""
        found = next((graph for graph in self._kept.get(key, ()) if graph.watch.change() is None), None)
        if found is None:
            self._programs.setdefault(key, program)
        return found

    def keep(self, key: Hashable, graph: CapturedStep) -> None:
        """Keep a graph that was captured."""
        self._seen.pop(key, None)
        self._kept.setdefault(key, []).append(graph)

    def drop(self, key: Hashable, graph: CapturedStep) -> None:
        """Forget a graph."""
        self._kept[key].remove(graph)

    def refuse(self, key: Hashable) -> None:
        """Leave such calls to Pyro from now on."""
        self._seen.pop(key, None)
        self._refused.add(key)

    def refused(self, key: Hashable) -> bool:
        """Whether such calls are left to Pyro; all are, once many kinds were refused and none was captured."""
        return key in self._refused or (len(self._refused) >= _REFUSALS and not len(self))

    def to_capture(self, key: Hashable) -> Watch | None:
        """What Pyro's last run of such a call read, if it is time to capture: nothing has changed since."""
        watch = self._seen.get(key)
        change = watch.change() if watch is not None else None
        if watch is not None and change is None and self._has_room(key):
            return watch
        if watch is None:
            self._new_keys += 1
        elif change is not None:
            self._changes[key] = self._changes.get(key, 0) + 1
            if self._changes[key] == _CHANGES:
                cure = (
                    "A decaying average is one (use_decaying_avg_baseline); a baseline that is a network is not."
                    if change.startswith(STORE)
                    else "Pass it as a tensor argument."
                )
                raise CaptureError(f"what model, guide or objective reads differs from call to call: {change}. {cure}")
        if self._new_keys == max(16, 2 * self.most):
            warn(
                f"{self._new_keys} calls came with shapes or Python values not seen before and were run by Pyro. "
                "Pass values that change as tensors, torch.tensor(beta) for instance.",
                CaptureWarning,
            )
            self._new_keys += 1
        return None

    def seen(self, key: Hashable, watch: Watch) -> None:
        """Note what Pyro's run of such a call read."""
        if len(self._seen) > 16 * self.most:
            for other in self._seen:
                self._programs.pop(other, None)
            self._seen.clear()
        self._seen[key] = watch

    def _has_room(self, key: Hashable) -> bool:
        if len(self) >= self.most:  # graphs of this key that hold no longer make way
            self._kept[key] = [graph for graph in self._kept.get(key, ()) if graph.watch.change() is None]
        if len(self) < self.most:
            return True
        if not self._said_full:
            self._said_full = True
            warn(
                f"max_captures={self.most} graphs are kept already; calls with further shapes or Python values are run "
                "by Pyro. Pass values that change as tensors, or raise max_captures.",
                CaptureWarning,
            )
        return False
