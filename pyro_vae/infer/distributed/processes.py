"""The processes that train together, and what they tell each other beside a step's gradients."""

from __future__ import annotations

import importlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = [
    "first_alone",
    "from_first",
    "gather",
    "own_noise",
    "processes",
    "rank",
    "require_same",
    "same_generator",
    "same_start",
    "spread",
    "waiting_for_others",
    "world_size",
]

T = TypeVar("T")


def rank() -> int:
    """Number of this process, from 0; 0 where it is alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes that train together; 1 where this one is alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def processes(*, timeout: float = 300.0) -> Iterator[None]:
    """Join the processes that ``torchrun`` started, until the end of the block; without ``torchrun`` stay alone.

    CPU tensors travel by gloo and CUDA ones by NCCL, each process having the GPU of its local rank.

    Args:
        timeout: seconds that a process waits for the others before it gives them up: more than the longest that they
            are ever apart (a compilation, a checkpoint on a slow disk).

    Raises:
        ValueError: ``timeout`` is not positive.

    Example:
        >>> with processes():
        ...     rank(), world_size()
        (0, 1)
    """
    if not timeout > 0:
        raise ValueError(f"timeout: expected a number of seconds above 0, got {timeout!r}.")
    started = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if not started or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    # Functions in there take the group of the moment of import for a default argument: imported later (as happens in
    # Pyro's first step), they would keep it, with threads that may abort the interpreter at its end.
    with suppress(ImportError):
        importlib.import_module("torch.distributed.nn.functional")
    store, number, count = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))
    store = _of_this_life(store, number, count, timeout)
    dist.init_process_group(store=store, rank=number, world_size=count, timeout=timedelta(seconds=timeout))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.code, int) and stop.code > 128:  # a polite stop, after the same step in all of them
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()  # not after another exception: it may wait for processes that are no more


def _end_with_parent(parent: int) -> None:
    """End this process within a second after ``torchrun``, its parent, was killed.

    Else it would go on, write checkpoints, and disturb the run that is started next.
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    os.write(2, b"pyro_vae: torchrun has ended, and so does this process. Start again, and resume.\n")
    os._exit(1)


def _of_this_life(store: dist.Store, number: int, count: int, timeout: float) -> dist.Store:
    """A part of the store in which no process wrote before it was started again.

    ``torchrun --max-restarts`` keeps one store over all restarts, and there stand the addresses of processes that are
    dead; its count of restarts is not the same on all machines (pytorch issue 135712). So the first process makes up a
    new name, and gives it to whoever shows a name that is as new.
    """
    own = uuid.uuid4().hex
    if number > 0:
        store.set(f"process {number}", own)
        name = store.get(f"for {own}").decode()  # waits for it
        store.set(f"{number} took {name}", "")
        return dist.PrefixStore(name, store)
    give_up = time.monotonic() + timeout
    for other in range(1, count):
        while not store.check([f"{other} took {own}"]):
            if store.check([f"process {other}"]):
                store.set(f"for {store.get(f'process {other}').decode()}", own)
            time.sleep(0.005)
            if time.monotonic() > give_up:
                raise RuntimeError(f"process {other} of {count} did not come within timeout={timeout:g} seconds.")
    return dist.PrefixStore(own, store)


def gather(value: T) -> list[T]:
    """The values that all processes give, in the order of their ranks, in each of them.

    Args:
        value: whatever can be pickled; tensors on the CPU.

    Raises:
        RuntimeError: another process has ended.

    Example:
        >>> gather("one process alone")
        ['one process alone']
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with waiting_for_others():
        dist.all_gather_object(values, value)
    return values


def from_first(function: Callable[[], T]) -> T:
    """What a function returns (or raises) in the first process, where alone it runs, in each of them.

    Args:
        function: without arguments; its result can be pickled.

    Raises:
        RuntimeError: another process has ended.
    """
    if world_size() == 1:
        return function()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = function()
        except Exception as error:
            outcome[1] = error
    with waiting_for_others():
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


@contextmanager
def first_alone() -> Iterator[None]:
    """The first process of each machine runs the block before the others do: for a download, or to fill a cache."""
    first = int(os.environ.get("LOCAL_RANK", rank())) == 0
    if not first:
        gather(None)
    yield
    if first:
        gather(None)


@contextmanager
def own_noise() -> Iterator[None]:
    """Random numbers of this process's own, from torch's generators, which afterwards are alike in all processes again.

    The noise is a function of the common generator's state and of the rank: a checkpoint that holds the one state
    holds that of every process.
    """
    if world_size() == 1:
        yield
        return
    seed = int(torch.empty((), dtype=torch.int64).random_()) + rank()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed % 2**63)
        yield


def spread(function: Callable[[Tensor], Any], x: Tensor) -> Any:
    """A function of data, applied by each process to its share of the rows, and the results joined in every process.

    Args:
        function: of data (N, *E); returns a tensor, or a tuple of them, of N rows. Its noise differs between processes.
        x: data (N, *E), the same in all processes.

    Returns:
        What ``function(x)`` returns in one process, but for the noise.

    Raises:
        RuntimeError: another process has ended.

    Example:
        >>> spread(lambda rows: rows + 1, torch.arange(3))  # spread(lambda x: pv.log_likelihood(model, guide, x), test)
        tensor([1, 2, 3])
    """
    if world_size() == 1 or len(x) == 0:
        return function(x)
    low, high = (len(x) * r // world_size() for r in (rank(), rank() + 1))
    with own_noise():
        own = function(x[low:high]) if low < high else None
    parts = [part for part in gather(_moved(own, torch.device("cpu"))) if part is not None]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts).to(x.device)
    joined = map(torch.cat, zip(*parts, strict=True))
    return _moved(getattr(type(parts[0]), "_make", type(parts[0]))(joined), x.device)


def same_generator() -> None:
    """Give every process the state of the first one's generator of torch (the CPU's): what follows is drawn alike."""
    if world_size() > 1:
        torch.set_rng_state(from_first(torch.get_rng_state))


def same_start(parameters: Mapping[str, Tensor], modules: Iterable[nn.Module] = ()) -> None:
    """Give every process the first one's parameters, and its buffers.

    Args:
        parameters: by name.
        modules: whose buffers (running averages, ...) to give.

    Raises:
        RuntimeError: the processes have different parameters, by name, shape or dtype.
    """
    if world_size() == 1:
        return
    buffers = [buffer for module in modules for buffer in module.buffers()]
    tensors = {**parameters, **{f"buffer {position}": buffer for position, buffer in enumerate(buffers)}}
    kinds = {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items()}
    for other, theirs in enumerate(gather(kinds)):
        if theirs != kinds:
            names = [name for name in {**kinds, **theirs} if kinds.get(name) != theirs.get(name)]
            raise RuntimeError(
                f"expected the same parameters in all processes; {names[:4]} of ranks {rank()} and {other} differ: "
                f"{[kinds.get(name) for name in names[:4]]} and {[theirs.get(name) for name in names[:4]]}. "
                "Build the same model in each, whatever its data."
            )
    with waiting_for_others(), torch.no_grad():
        for name in sorted(tensors):
            value = tensors[name].detach().contiguous()
            dist.broadcast(value, src=0)
            tensors[name].copy_(value)


def require_same(parameters: Mapping[str, Tensor]) -> None:
    """Find out whether something changed the parameters in one process and not in the others.

    Raises:
        RuntimeError: the parameters differ by more than rounding.
    """
    if world_size() == 1:
        return
    with torch.no_grad():
        norms = gather([float(value.double().norm()) for value in parameters.values()])
    for name, sizes in zip(parameters, zip(*norms, strict=True), strict=True):
        if max(sizes) - min(sizes) > 1e-5 * max(sizes):
            raise RuntimeError(
                f"expected the same parameters in all processes, the norms of {name!r} are {sizes[:8]}. Something "
                "changed them, or the optimiser, in one process only: a callback that does so needs essential = True."
            )


@contextmanager
def waiting_for_others() -> Iterator[None]:
    """Say what it means when an exchange with the others fails."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"process {rank()} of {world_size()} waited for the others, and one of them has ended or does not answer: "
            f"its own messages say why. Start all of them again, and resume. ({_first_line(error)})"
        ) from error


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, tuple):
        return getattr(type(value), "_make", type(value))(part.to(device) for part in value)
    return value.to(device) if isinstance(value, Tensor) else value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
