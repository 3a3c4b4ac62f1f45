"""Run something and leave tensors, random numbers and gradients as they were."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

__all__ = ["gpus", "host_random_state", "set_torch_random_state", "torch_random_state", "undone", "writes_to"]

# These operators write to running statistics without saying so in their schema: positions of what they write.
_SILENT_WRITES = {"native_batch_norm": (3, 4), "cudnn_batch_norm": (3, 4), "miopen_batch_norm": (3, 4)}

# Where Pyro's parameter store keeps what it knows of a parameter.
_STORE = ("_params", "_param_to_name", "_constraints")

Operation = Callable[[Any, tuple[Any, ...], dict[str, Any]], None]


@contextlib.contextmanager
def undone(params: Iterable[Tensor] = (), *, before_each: Operation | None = None) -> Iterator[None]:
    """Undo what runs inside: tensors that it writes (running statistics), random numbers, gradients, Pyro's store.

    Not undone is what the run writes to Python objects of the user's.

    Args:
        params: parameters whose ``.grad`` is to be kept; inside, they start with none.
        before_each: called with every operator and its arguments before it runs; what it raises ends the block.
    """
    params = list(params)
    gradients = [p.grad for p in params]
    for p in params:
        p.grad = None
    writes = _Writes(before_each)
    store = pyro.get_param_store()
    kept = {name: dict(getattr(store, name)) for name in _STORE}
    host = host_random_state()
    try:
        with torch.random.fork_rng(devices=gpus()), writes:
            yield
    finally:
        writes.undo()
        for name, value in kept.items():
            getattr(store, name).clear()
            getattr(store, name).update(value)
        if host_random_state() != host:
            random.setstate(host[0])
            np.random.set_state(("MT19937", np.frombuffer(host[1][0], dtype=np.uint32), *host[1][1:]))
        for p, gradient in zip(params, gradients, strict=True):
            p.grad = gradient


class _Writes(TorchDispatchMode):
    """Remember the memory of every tensor before it is first written."""

    def __init__(self, before_each: Operation | None) -> None:
        super().__init__()
        self._before_each = before_each
        self._saved: dict[int, tuple[Any, Any]] = {}  # by address of a storage: the storage, and a copy of it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._before_each is not None:
            self._before_each(func, args, kwargs)
        for value in writes_to(func, args, kwargs):
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(tensor, Tensor):
                    self._save(tensor)
        return func(*args, **kwargs)

    def _save(self, tensor: Tensor) -> None:
        # The whole storage: an expanded tensor, whose elements share memory, cannot be copied back by itself.
        storage: Any = tensor.untyped_storage() if tensor.layout is torch.strided else tensor
        key = storage._cdata if isinstance(storage, torch.UntypedStorage) else id(storage)
        if key not in self._saved:
            self._saved[key] = (storage, _copy(storage))

    def undo(self) -> None:
        with torch.no_grad():
            for storage, before in self._saved.values():
                if isinstance(storage, torch.UntypedStorage) and storage.nbytes() != before.nbytes():
                    storage.resize_(before.nbytes())  # an operator with out= has given it the size of its result
                storage.copy_(before)


def _copy(storage: Any) -> Any:
    with torch.no_grad(), _disable_current_modes():  # a tracer above would record the copy
        return storage.clone()


def writes_to(func: Any, args: Any, kwargs: Any) -> Iterator[Any]:
    """Yield the arguments that an operator writes to."""
    schema = getattr(func, "_schema", None)
    if schema is None:
        return
    if schema.is_mutable:
        for position, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                yield args[position] if position < len(args) else kwargs.get(argument.name)
    for position in _SILENT_WRITES.get(func.overloadpacket.__name__, ()):
        yield args[position]


def host_random_state() -> tuple[Any, ...]:
    """Return the state of Python's and numpy's global random numbers."""
    state = np.random.get_state(legacy=True)
    return random.getstate(), (state[1].tobytes(), *state[2:])  # type: ignore[index]


def torch_random_state() -> dict[int | None, Tensor]:
    """Return the states of torch's generators: the CPU's (under None) and those of the GPUs."""
    return {None: torch.get_rng_state()} | {gpu: torch.cuda.get_rng_state(gpu) for gpu in gpus()}


def set_torch_random_state(states: dict[int | None, Tensor]) -> None:
    """Set torch's generators to what :func:`torch_random_state` returned."""
    for gpu, state in states.items():
        if gpu is None:
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, gpu)


def gpus() -> list[int]:
    """Return the GPUs that random numbers may be drawn on: all of them, once this process uses one."""
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
