"""The state of every random generator that training may draw from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["get_state", "preserved", "same_noise", "set_state"]


def get_state(own: list[torch.Generator] | None = None) -> dict[str, Any]:
    """Return the state of torch's (CPU, every CUDA device in use), numpy's and Python's generators, as plain values.

    Args:
        own: further generators, those of a ``DataLoader`` for instance.
    """
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss],
        "python": _to_lists(random.getstate()),
        "own": [generator.get_state() for generator in own or []],
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_state(state: dict[str, Any], own: list[torch.Generator] | None = None) -> None:
    """Put each generator into the state that ``get_state`` returned."""
    torch.set_rng_state(state["torch"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, next_gauss = state["python"]
    random.setstate((version, tuple(words), next_gauss))
    for generator, own_state in zip(own or [], state["own"], strict=False):
        generator.set_state(own_state)
    if "cuda" in state and torch.cuda.is_available():
        # A checkpoint may come from a machine with more devices than this one.
        for device, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda_state, device)


@contextmanager
def preserved(own: list[torch.Generator] | None = None) -> Iterator[None]:
    """Leave each generator as it was, those in ``own`` included."""
    state = get_state(own)
    try:
        yield
    finally:
        set_state(state, own)


@contextmanager
def same_noise(seed: int = 0) -> Iterator[None]:
    """Draw the same random numbers every time, and leave each generator as it was."""
    with preserved():
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield


def _to_lists(state: tuple[Any, ...]) -> list[Any]:
    version, words, next_gauss = state
    return [version, list(words), next_gauss]
