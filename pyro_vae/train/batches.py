"""Any iterable of batches, from any position in an epoch; and what a batch is to a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from . import generators

__all__ = [
    "arguments",
    "batch_size",
    "batches_from",
    "naming_the_batch",
    "number_of",
    "require_arguments",
    "require_iterable",
]


def batches_from(batches: Any, epoch: int, first: int, epoch_state: dict[str, Any]) -> Iterator[Any]:
    """The batches of an epoch, from number ``first`` on.

    ``pyro_vae.data.Batches`` (anything with ``iterate(epoch, start)``) goes there directly. Any other iterable is put
    into the state of the epoch's beginning, iterated from there, and its first batches are thrown away: a
    ``DataLoader`` draws its order, and the seeds of its workers, from torch's generator when the epoch begins.

    Args:
        batches: the iterable.
        epoch: number of the epoch, from 0.
        first: number of batches of this epoch that were trained on already.
        epoch_state: state of all generators when the epoch began.
    """
    if hasattr(batches, "iterate"):
        return iter(batches.iterate(epoch, first))
    sampler: Any = getattr(batches, "sampler", None)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)
    if not first:
        return iter(batches)
    own = generators.own_generators(batches)
    now = generators.get_state(own)
    generators.set_state(epoch_state, own)
    iterator = iter(batches)
    for position in range(first):
        try:
            next(iterator)
        except StopIteration:
            raise ValueError(
                f"train: expected the data that the checkpoint was made with, {first} batches of epoch {epoch + 1} "
                f"or more, got {position}. Resume with the same data and batch size."
            ) from None
    generators.set_state(now)  # their own generators are where those batches left them
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
