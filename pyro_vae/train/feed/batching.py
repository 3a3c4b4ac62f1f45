"""Batches from any position of an epoch, whatever holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

from torch import Tensor, nn

from ..resume import generators
from .polite_stop import PoliteStop, StopRequested

__all__ = ["Feed", "feed_of", "naming_the_batch", "require_iterable"]

_END = object()


class Feed:
    """The batches of a ``DataLoader``, a list, or any other iterable.

    Such an iterable can be begun only at the first batch of an epoch. To go on within an epoch, the generators are put
    into their state at the epoch's beginning, the epoch is begun again, and the batches that were trained on are read
    and thrown away. (A ``DataLoader`` draws its order, and the seeds of its workers, from torch's generator when an
    epoch begins.) A loader with ``state_dict`` and ``load_state_dict`` goes there by itself.

    Args:
        name: "train" or "validation", for errors.
        batches: the iterable.
        polite_stop: whether the run is asked to stop.
    """

    def __init__(self, name: str, batches: Any, polite_stop: PoliteStop) -> None:
        self.name = name
        self.batches = batches
        self._polite_stop = polite_stop
        self._begun = False
        self._current: Iterator[Any] | None = None
        self._epoch_start: dict[str, Any] = {}
        self._at_start: tuple[Any, list[Any]] = (None, [])

    @property
    def length(self) -> int | None:
        """Number of batches in an epoch, where that is known."""
        try:
            return len(self.batches)
        except TypeError:  # a DataLoader has __len__ even where its data set has none
            return None

    @property
    def stop_requested(self) -> bool:
        """Whether the run is asked to stop."""
        return self._polite_stop.signal is not None

    @property
    def first_epoch(self) -> int:
        """Number of the epoch that the next one is to the data."""
        return 0

    @property
    def generators(self) -> list[Any]:
        """The generators that a ``DataLoader``, its samplers and its data set hold."""
        found = [item for owner in self._owners() for item in getattr(owner, "__dict__", {}).values()]
        return list({id(item): item for item in found if isinstance(item, generators.KINDS)}.values())

    def mark_epoch(self) -> None:
        """Note the state of generators, loader and samplers, with which the next epoch begins."""
        self._begun = False
        self._epoch_start = generators.get_state(self.generators)
        self._at_start = self._own_states()

    def epoch(self, number: int, first: int = 0) -> Iterator[Any]:
        """Iterate over the batches of an epoch.

        Args:
            number: number of the epoch, from 0.
            first: number of the first batch, from 0.

        Raises:
            StopRequested: the run is asked to stop, and a batch cannot be had. The generators are then in their state
                after the last batch.
            RuntimeError: a worker of a ``DataLoader`` died.
        """
        before = generators.get_state(self.generators)
        self._begun = True
        try:
            iterator = self._fetch(partial(self._begin, number, first))
            batch = self._fetch(partial(next, iterator, _END))
        except StopRequested:
            # The epoch will be begun again, and draw its order again.
            generators.set_state(before, self.generators)
            raise
        while batch is not _END:
            yield batch
            batch = self._fetch(partial(next, iterator, _END))

    def put_back(self, batch: Any, rest: Iterator[Any]) -> None:
        """Keep a batch (unless it is None) and the rest of its epoch, for ``take``."""
        self._current = rest if batch is None else chain([batch], rest)

    def take(self) -> Iterator[Any] | None:
        """Return what ``put_back`` keeps, and keep it no longer."""
        current, self._current = self._current, None
        return current

    def first_batch(self, number: int) -> Any:
        """Return the first batch of an epoch, or None, and leave the generators as they were."""
        with generators.preserved(self.generators):
            return next(self.epoch(number), None)

    def read_again(self, number: int, batch: int) -> Any:
        """Return a batch of an epoch once more; None where that cannot be done."""
        return None

    def finish_epoch(self, number: int) -> None:
        """Tell the data that the epoch is at its end, ``number`` being that of the next one."""

    def state_dict(self, batch: int) -> dict[str, Any]:
        """Return the state of all generators, and of a loader and samplers that have a ``state_dict`` of their own.

        Args:
            batch: number of batches of the epoch that were trained on.
        """
        now, (loader, samplers) = generators.get_state(self.generators), self._own_states()
        if batch == 0 and self._begun:  # the first batch was fetched, and is to be fetched again
            now, (loader, samplers) = self._epoch_start, self._at_start
        samplers = self._at_start[1] if batch else samplers  # their epoch is begun again from its beginning
        return {"generators": now, "epoch_start": self._epoch_start, "batches": loader, "owners": samplers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of them into the state that ``state_dict`` returned."""
        self._epoch_start = state["epoch_start"]
        generators.set_state(state["generators"], self.generators)
        self._at_start = (state["batches"], state["owners"])
        self._begun = False
        for sampler, own in zip(self._samplers(), state["owners"], strict=False):
            sampler.load_state_dict(own)
        if _has_state(self.batches) and state["batches"] is not None:
            self.batches.load_state_dict(state["batches"])

    def _own_states(self) -> tuple[Any, list[Any]]:
        loader = self.batches.state_dict() if _has_state(self.batches) else None
        return loader, [sampler.state_dict() for sampler in self._samplers()]

    def _samplers(self) -> list[Any]:
        return [owner for owner in self._owners()[1:] if _has_state(owner) and not isinstance(owner, nn.Module)]

    def _begin(self, number: int, first: int) -> Iterator[Any]:
        for owner in self._owners():
            if hasattr(owner, "set_epoch"):
                owner.set_epoch(number)
        if not first or _has_state(self.batches):  # which was put to that batch already
            return iter(self.batches)
        with generators.preserved():  # but not the data's own, which these batches move to where they are to be
            generators.set_state(self._epoch_start, self.generators)
            iterator = iter(self.batches)
            for position in range(first):
                if next(iterator, _END) is _END:
                    raise ValueError(
                        f"train: expected the data that the checkpoint was made with, {first} batches of epoch "
                        f"{number + 1} or more, got {position}. Resume with the same data and batch size."
                    )
        return iterator

    def _owners(self) -> list[Any]:
        """What may depend on the epoch, or hold a generator: the batches, their samplers and their data set."""
        owners = [self.batches]
        for name in ("sampler", "batch_sampler", "dataset"):
            owner = getattr(self.batches, name, None)
            owners += [owner, getattr(owner, "sampler", None)]
        return list({id(owner): owner for owner in owners if owner is not None}.values())

    def _fetch(self, get: Callable[[], Any]) -> Any:
        return self._polite_stop.fetch(partial(self._get, get))

    def _get(self, get: Callable[[], Any]) -> Any:
        try:
            return get()
        except (EOFError, OSError) as error:
            # A worker's death may show as a broken connection before torch notices it. An exception that a worker
            # raised says so in its message.
            if not getattr(self.batches, "num_workers", 0) or "DataLoader worker" in str(error):
                raise
            raise RuntimeError(
                "a DataLoader worker died: expected a batch from it, the connection to it broke "
                f"({type(error).__name__}: {error}). It crashed, or was killed, perhaps for lack of memory: fewer "
                "workers or smaller batches need less memory, and num_workers=0 shows where it crashes."
            ) from error


class PositionedFeed(Feed):
    """The batches of ``pyro_vae.data.Batches``: anything with ``iterate(epoch, start)``, which starts at any batch."""

    @property
    def first_epoch(self) -> int:
        return int(getattr(self.batches, "epoch", 0))

    def read_again(self, number: int, batch: int) -> Any:
        return next(iter(self.batches.iterate(number, batch)), None)

    def finish_epoch(self, number: int) -> None:
        if hasattr(self.batches, "epoch"):
            self.batches.epoch = number

    def _begin(self, number: int, first: int) -> Iterator[Any]:
        return iter(self.batches.iterate(number, first))


def _has_state(owner: Any) -> bool:
    return all(callable(getattr(owner, name, None)) for name in ("state_dict", "load_state_dict"))


def feed_of(name: str, batches: Any, polite_stop: PoliteStop) -> Feed:
    """Return the feed for this kind of batches."""
    kind = PositionedFeed if hasattr(batches, "iterate") else Feed
    return kind(name, batches, polite_stop)


def require_iterable(name: str, batches: Any) -> None:
    """Refuse what is no iterable of batches: one tensor (whose rows would be taken for batches), a number, a string."""
    if isinstance(batches, Mapping):
        raise TypeError(
            f"{name}: expected an iterable of batches, got a {type(batches).__name__}, whose keys would be taken as "
            "batches. Where it is one batch, give [batch]."
        )
    if isinstance(batches, (Tensor, str)) or not isinstance(batches, Iterable):
        raise TypeError(
            f"{name}: expected an iterable of batches, got {type(batches).__name__}. "
            "Wrap a tensor as pyro_vae.data.Batches(x, batch_size=128)."
        )


@contextmanager
def naming_the_batch(name: str, at: Any, batches: Any = None) -> Iterator[None]:
    """Add to an error which batch it came from.

    Args:
        name: "train" or "validation".
        at: an object whose ``position`` is the current batch in words.
        batches: as they were given to ``fit``; one batch in their place is pointed out.
    """
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        text = f"in {name}, {at.position}"
        # A subclass may have a constructor of its own; and an exception from a worker has its message already.
        if type(error) in (TypeError, ValueError, RuntimeError) and text not in str(error):
            hint = _one_batch(name, batches, error)
            raise type(error)(f"{error}\n({text}, counted from 1{hint})") from error
        raise


def _one_batch(name: str, batches: Any, error: Exception) -> str:
    """Say that tensors were taken as batches, where they look like the arguments of one batch."""
    if type(batches) not in (tuple, list) or len(batches) < 2 or not all(isinstance(x, Tensor) for x in batches):
        return ""
    kinds = {(x.shape[1:], x.dtype) for x in batches}  # the parts of a split tensor are of one kind
    if len(kinds) == 1 and not isinstance(error, TypeError):
        return ""
    number, kind = len(batches), type(batches).__name__
    return (
        f"; the {kind} of {number} tensors given as {name} was taken as {number} batches; one batch is written [(x, y)]"
    )
