"""What the processes tell each other beside a step's gradients."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .processes import rank, world_size

__all__ = [
    "first_alone",
    "from_first",
    "gather",
    "own_noise",
    "require_same",
    "same_generator",
    "same_start",
    "spread",
    "waiting_for_others",
]

T = TypeVar("T")


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
