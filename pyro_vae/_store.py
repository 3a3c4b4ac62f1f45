"""Entries of Pyro's param store, whose tensors may stand under several names."""

from __future__ import annotations

from pyro.params.param_store import ParamStoreDict

__all__ = ["remove"]


def remove(store: ParamStoreDict, name: str) -> None:
    """Remove an entry whose tensor may stand under other names too, which ``del store[name]`` breaks."""
    parameter = store._params.pop(name)
    store._constraints.pop(name)
    if store._param_to_name.get(parameter) == name:
        del store._param_to_name[parameter]
        for other, value in store._params.items():
            if value is parameter:
                store._param_to_name[parameter] = other
