"""Any iterable of batches, from any position in an epoch; and what a batch is to a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from . import generators
from .signals import Interrupted, PoliteStop

__all__ = [
    "arguments",
    "batch_size",
    "batches_from",
    "fetched",
    "naming_the_batch",
    "number_of",
    "require_arguments",
    "require_iterable",
]

_ENDED = object()


def batches_from(batches: Any, epoch: int, first: int, epoch_state: dict[str, Any], stop: PoliteStop) -> Iterator[Any]:
    """The batches of an epoch, from number ``first`` on.

    ``pyro_vae.data.Batches`` (anything with ``iterate(epoch, start)``) goes there directly. Any other iterable is put
    into the state of the epoch's beginning, iterated from there, and its first batches are thrown away: a
    ``DataLoader`` draws its order, and the seeds of its workers, from torch's generator when the epoch begins.

    Args:
        batches: the iterable.
        epoch: number of the epoch, from 0.
        first: number of batches of this epoch that were trained on already.
        epoch_state: state of all generators when the epoch began.
        stop: see ``fetched``.
    """
    return fetched(batches, partial(_begun, batches, epoch, first, epoch_state), stop)


def fetched(batches: Any, begin: Callable[[], Iterator[Any]], stop: PoliteStop) -> Iterator[Any]:
    """The batches of an iterator over ``batches``.

    Args:
        batches: the iterable.
        begin: makes the iterator.
        stop: whether the run is asked to stop, which is what counts where a batch cannot be had.

    Raises:
        Interrupted: the run is asked to stop, and a batch cannot be had. All is as it was after the last batch.
        RuntimeError: a worker of a ``DataLoader`` died.
    """
    own = generators.own_generators(batches)
    before = generators.get_state(own)
    try:
        iterator = stop.fetch(partial(_from_workers, batches, begin))
        get = partial(_from_workers, batches, partial(next, iterator, _ENDED))
        batch = stop.fetch(get)
    except Interrupted:
        # A loader draws its order, and the seeds of its workers, when it is begun; it will be begun again.
        generators.set_state(before, own)
        raise
    while batch is not _ENDED:
        yield batch
        batch = stop.fetch(get)


def _from_workers(batches: Any, get: Callable[[], Any]) -> Any:
    try:
        return get()
    except (EOFError, OSError) as error:
        # The end of a worker may show in the broken connection to it before torch has noticed it. An error that was
        # raised in a worker says so in its message.
        if not getattr(batches, "num_workers", 0) or "DataLoader worker" in str(error):
            raise
        raise RuntimeError(
            "a DataLoader worker died: expected a batch from it, the connection to it broke "
            f"({type(error).__name__}: {error}). It was killed, for want of memory for instance, or crashed: fewer "
            "workers or smaller batches need less memory, and num_workers=0 shows where it crashes."
        ) from error


def _begun(batches: Any, epoch: int, first: int, epoch_state: dict[str, Any]) -> Iterator[Any]:
    if hasattr(batches, "iterate"):
        return iter(batches.iterate(epoch, first))
    sampler: Any = getattr(batches, "sampler", None)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)
    if not first:
        return iter(batches)
    with generators.preserved():  # their own generators stay where those batches leave them
        generators.set_state(epoch_state, generators.own_generators(batches))
        iterator = iter(batches)
        for position in range(first):
            if next(iterator, _ENDED) is _ENDED:
                raise ValueError(
                    f"train: expected the data that the checkpoint was made with, {first} batches of epoch "
                    f"{epoch + 1} or more, got {position}. Resume with the same data and batch size."
                )
    return iterator


def arguments(batch: Any, transform: Callable[[Any], Any] | None) -> tuple[Any, ...]:
    """A batch as the positional arguments of model and guide."""
    if transform is not None:
        batch = transform(batch)
    return tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)


def require_arguments(name: str, args: tuple[Any, ...], model: Callable[..., Any]) -> None:
    """Refuse batches that are not the positional arguments of the model."""
    try:
        inspect.signature(model).bind_partial(*args)
    except TypeError as error:
        raise TypeError(
            f"{name}: expected batches that are the positional arguments of the model, got {len(args)} items, "
            f"which do not fit ({error}). Give transform=, e.g. transform=lambda batch: batch[0] to drop labels."
        ) from error


def batch_size(args: tuple[Any, ...]) -> int:
    """Number of data in a batch: the length of its first tensor (1 where it has none)."""
    for arg in args:
        if isinstance(arg, Tensor) and arg.ndim:
            return len(arg)
    return 1


def number_of(batches: Any) -> int | None:
    """How many batches there are in an epoch, where that is known."""
    try:
        return len(batches)
    except TypeError:  # a DataLoader has __len__ also where its data have none
        return None


def require_iterable(name: str, batches: Any) -> None:
    """Refuse what is no iterable of batches: one tensor (whose rows would be taken for batches), a number, a string."""
    if isinstance(batches, (Tensor, str)) or not isinstance(batches, Iterable):
        raise TypeError(
            f"{name}: expected an iterable of batches, got {type(batches).__name__}. "
            "Wrap a tensor as pyro_vae.data.Batches(x, batch_size=128)."
        )


@contextmanager
def naming_the_batch(name: str, at: Any) -> Iterator[None]:
    """Say in an error which batch it came from, ``at.position`` then: bad data may sit in any of them."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        text = f"in {name}, {at.position}"
        # An error of a subclass may have a constructor of its own, and a worker's has its message already.
        if type(error) in (TypeError, ValueError, RuntimeError) and text not in str(error):
            raise type(error)(f"{error}\n({text}, counted from 1)") from error
        raise
