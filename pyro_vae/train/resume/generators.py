"""The state of every random generator that training may draw from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["KINDS", "get_state", "preserved", "same_noise", "set_state"]

KINDS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def get_state(own: list[Any] | None = None) -> dict[str, Any]:
    """Return the state of torch's (CPU, every CUDA device in use), numpy's and Python's generators, as plain values.

    Args:
        own: further generators, of any of ``KINDS``: those of a ``DataLoader`` for instance.
    """
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": _numpy_state(np.random),
        "python": _python_state(random),
        "own": [_get_own(generator) for generator in own or []],
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_state(state: dict[str, Any], own: list[Any] | None = None) -> None:
    """Put each generator into the state that ``get_state`` returned."""
    torch.set_rng_state(state["torch"])
    _set_numpy_state(np.random, state["numpy"])
    _set_python_state(random, state["python"])
    for generator, own_state in zip(own or [], state["own"], strict=False):
        _set_own(generator, own_state)
    if "cuda" in state and torch.cuda.is_available():
        # A checkpoint may come from a machine with more devices than this one.
        for device, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda_state, device)


@contextmanager
def preserved(own: list[Any] | None = None) -> Iterator[None]:
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


def _get_own(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return _plain(generator.bit_generator.state)
    return _python_state(generator) if isinstance(generator, random.Random) else _numpy_state(generator)


def _set_own(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = _with_arrays(state)
    elif isinstance(generator, random.Random):
        _set_python_state(generator, state)
    else:
        _set_numpy_state(generator, state)


def _python_state(generator: Any) -> list[Any]:
    version, words, next_gauss = generator.getstate()
    return [version, torch.tensor(words), next_gauss]


def _set_python_state(generator: Any, state: list[Any]) -> None:
    version, words, next_gauss = state
    generator.setstate((version, tuple(words.tolist()), next_gauss))


def _numpy_state(generator: Any) -> list[Any]:
    name, keys, position, has_gauss, gauss = generator.get_state(legacy=True)
    return [str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss]


def _set_numpy_state(generator: Any, state: list[Any]) -> None:
    name, keys, position, has_gauss, gauss = state
    generator.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))


def _plain(value: Any) -> Any:
    """The state of a bit generator, its arrays as lists of numbers."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [str(value.dtype), value.tolist()] if isinstance(value, np.ndarray) else value


def _with_arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_arrays(item) for key, item in value.items()}
    return np.array(value[1], dtype=value[0]) if isinstance(value, list) else value
