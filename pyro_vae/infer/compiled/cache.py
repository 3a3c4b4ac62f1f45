"""The graphs that one ``CompiledSVI`` keeps, each for the calls that it stands for."""

from __future__ import annotations

import warnings
from collections.abc import Hashable

from .captured_step import Captured
from .dependencies import Snapshot

_CALLER = 6  # frames from a warning here to the line that called step()


class Graphs:
    """Captured graphs by the key of a call, and what is known of keys that may become one.

    Args:
        most: how many graphs are kept.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.calls = 0  # that a graph answered
        self._kept: dict[Hashable, list[Captured]] = {}
        self._seen: dict[Hashable, Snapshot] = {}  # keys that Pyro ran last, and what that run could see
        self._new_keys = self._changes = 0
        self._said_full = False

    def __len__(self) -> int:
        return sum(len(graphs) for graphs in self._kept.values())

    def find(self, key: Hashable) -> Captured | None:
        """The graph that stands for such a call as things are now."""
        return next((graph for graph in self._kept.get(key, ()) if graph.snapshot.change() is None), None)

    def keep(self, key: Hashable, graph: Captured) -> None:
        del self._seen[key]
        self._kept.setdefault(key, []).append(graph)

    def to_capture(self, key: Hashable) -> Snapshot | None:
        """What Pyro's last run of such a call could see, if it is time to capture: nothing has changed since."""
        snapshot = self._seen.get(key)
        change = snapshot.change() if snapshot is not None else None
        if snapshot is not None and change is None and self._has_room(key):
            return snapshot
        if snapshot is None:
            self._new_keys += 1
        elif change is not None:
            self._changes += 1
            if self._changes == 20:
                warnings.warn(
                    f"steps are not captured, since state that they may depend on differs from call to call: {change}. "
                    "Pass it as a tensor argument, or use compile=False to leave every step to Pyro.",
                    stacklevel=_CALLER - 1,
                )
        if self._new_keys == 8 * self.most:
            warnings.warn(
                f"{self._new_keys} calls came with shapes or Python values not seen before and were run by Pyro. "
                "Pass values that change as tensors, torch.tensor(beta) for instance.",
                stacklevel=_CALLER - 1,
            )
            self._new_keys += 1
        return None

    def seen(self, key: Hashable, snapshot: Snapshot) -> None:
        """Notes what Pyro's run of such a call could see."""
        if len(self._seen) > 16 * self.most:
            self._seen.clear()
        self._seen[key] = snapshot

    def _has_room(self, key: Hashable) -> bool:
        if len(self) >= self.most:  # graphs of this key that hold no longer make way
            self._kept[key] = [graph for graph in self._kept.get(key, ()) if graph.snapshot.change() is None]
        if len(self) < self.most:
            return True
        if not self._said_full:
            self._said_full = True
            warnings.warn(
                f"max_captures={self.most} graphs are kept already; calls with further shapes or Python values are run "
                "by Pyro. Pass values that change as tensors, or raise max_captures.",
                stacklevel=_CALLER,
            )
        return False
