"""Mini-batches of data held in memory or in a mapped file."""

from __future__ import annotations

import copy
import mmap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._checks import require_positive_int, require_rows
from .binarize import to_float
from .noise import noise_keys, stream

Data = Tensor | np.ndarray
Batch = Tensor | tuple[Tensor, ...]
Transform = Callable[[Tensor, Tensor], Tensor]


class Batches:
    """Mini-batches of a data set; each pass over them is a new epoch with a new order and new noise.

    The data keep their dtype (uint8 pixels take a quarter of the memory of floats) and their device. Each batch is
    gathered and transformed when it is asked for. A ``np.memmap`` is never read as a whole, and its pages are released
    after each batch, so that beyond 8 bytes per datum for the order memory does not grow with the file.

    The content of batch ``i`` of epoch ``e`` is a pure function of ``(seed, e, i)``: training can stop and go on at any
    batch. The noise of a datum is a pure function of ``(seed, e, n)``, with ``n`` the row of the datum.

    Args:
        x: Data, (N, *E), a tensor or a numpy array.
        *others: Labels or other values of each datum, N rows each; returned as they are, without the transform.
        batch_size: Number of data in a batch, B.
        shuffle: Whether each epoch has its own random order; otherwise the order is that of ``x``.
        drop_last: Whether to leave out a last batch of fewer than B data.
        seed: Seed of the orders and of the noise, an integer in [0, 2^63).
        transform: Function of a batch of data (B, *E) and its noise keys (B,) that returns the batch to train on, for
            instance :func:`~pyro_vae.data.binarize`. Default: uint8 becomes float32 in [0, 1], other dtypes stay.
        device: Device that a batch is moved to before its transform. Default: the device of the data.

    Attributes:
        epoch: The number of the epoch that the next pass will be. It can be set.
        num_data: Number of data in the whole set, N.

    Raises:
        TypeError: If ``x`` or one of ``others`` is neither tensor nor numeric array, ``seed`` no integer, or
            ``transform`` no function.
        ValueError: If there are no data, lengths differ, ``batch_size`` is no integer of at least 1, or there would be
            no batch.

    Example:
        >>> import torch
        >>> from pyro_vae.data import Batches, binarize
        >>> images = torch.randint(0, 256, (1000, 784), dtype=torch.uint8)
        >>> labels = torch.randint(0, 10, (1000,))
        >>> train = Batches(images, labels, batch_size=128, shuffle=True, transform=binarize)
        >>> for x, y in train:
        ...     pass
        >>> train, x.shape, x.dtype, y.shape, train.epoch
        (Batches(1000 of (784,) uint8, batch_size=128, 8 batches, shuffle=True, seed=0), torch.Size([104, 784]), \
torch.float32, torch.Size([104]), 1)
    """

    def __init__(
        self,
        x: Data,
        *others: Data,
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        transform: Transform = to_float,
        device: torch.device | str | None = None,
    ) -> None:
        _check_data("x", x)
        for position, other in enumerate(others):
            _check_data(f"others[{position}]", other)
            require_rows(f"others[{position}]", other, len(x))
        batch_size = require_positive_int("batch_size", batch_size)
        if drop_last and batch_size > len(x):
            raise ValueError(
                f"batch_size: expected at most the {len(x)} data in x, got {batch_size} with drop_last=True, "
                "which leaves no batch. Lower it, or leave drop_last out."
            )
        if not callable(transform):
            raise TypeError(f"transform: expected a function of (x, keys), got {type(transform).__name__}.")
        stream(seed)  # raises now, not in the first epoch, if the seed is no valid one
        self.num_data = len(x)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.transform = transform
        self.device = device
        self.epoch = 0
        self._data = (x, *others)
        self._rank, self._world_size = 0, 1

    def __len__(self) -> int:
        """Number of batches in an epoch, the same on every shard."""
        return self.num_data // self.batch_size if self.drop_last else -(-self.num_data // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Pass over epoch ``self.epoch`` and raise ``self.epoch`` by 1."""
        self.epoch += 1
        return self.iterate(self.epoch - 1)

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Pass over one epoch from one of its batches on; ``self.epoch`` is neither read nor changed.

        Args:
            epoch: Number of the epoch, from 0.
            start: Number of the first batch, from 0 to ``len(self)``.

        Returns:
            Iterator over the batches: tensors, or tuples of tensors where ``others`` were given.

        Raises:
            ValueError: If there is no such epoch or batch.

        Example:
            >>> batches = Batches(torch.arange(6.0), batch_size=2, shuffle=True)
            >>> torch.equal(list(batches.iterate(3))[2], next(batches.iterate(3, start=2)))
            True
        """
        if epoch < 0:
            raise ValueError(f"epoch: expected a number from 0 on, got {epoch}.")
        if not 0 <= start <= len(self):
            raise ValueError(f"start: expected the number of a batch, 0 to {len(self)}, got {start}.")
        return self._pass(stream(self.seed, epoch), start)

    def shard(self, rank: int, world_size: int) -> Batches:
        """Return the share of one process in every batch, for data-parallel training.

        All shards have the same number of batches, and their batches joined by rank are those of ``self``, noise
        included. Sizes differ by at most one. A last batch with fewer data than processes leaves some of them an empty
        batch; ``drop_last=True`` rules that out.

        Args:
            rank: Number of the process, from 0.
            world_size: Number of processes, at most ``batch_size``.

        Returns:
            New batches over the same data.

        Raises:
            ValueError: If the rank is not below ``world_size``, or there are more processes than data in a batch.

        Example:
            >>> batches = Batches(torch.arange(10.0), batch_size=4)
            >>> [batch.tolist() for batch in batches.shard(rank=1, world_size=2)]
            [[2.0, 3.0], [6.0, 7.0], [9.0]]
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected 0 <= rank < world_size, got rank {rank} and world_size {world_size}.")
        if world_size > self.batch_size:
            raise ValueError(
                f"world_size: expected at most the {self.batch_size} data of a batch, got {world_size} processes. "
                "Raise batch_size, the size of the batch over all processes."
            )
        part = copy.copy(self)
        part._rank, part._world_size = rank, world_size
        return part

    def __repr__(self) -> str:
        x = self._data[0]
        what = f"{self.num_data} of {tuple(x.shape[1:])} {str(x.dtype).removeprefix('torch.')}"
        shard = f", shard {self._rank} of {self._world_size}" if self._world_size > 1 else ""
        how = f"batch_size={self.batch_size}, {len(self)} batches, shuffle={self.shuffle}, seed={self.seed}"
        return f"Batches({what}, {how}{shard})"

    def _pass(self, start_of_stream: int, first: int) -> Iterator[Batch]:
        if self.shuffle:
            order = torch.randperm(self.num_data, generator=torch.Generator().manual_seed(start_of_stream))
        else:
            order = torch.arange(self.num_data)
        if isinstance(self._data[0], Tensor):
            order = order.to(self._data[0].device)  # one copy an epoch: one a batch would make a GPU wait
        for batch in range(first, len(self)):
            rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            low, high = (len(rows) * r // self._world_size for r in (self._rank, self._rank + 1))
            rows = rows[low:high]
            x, *others = (_gather(data, rows, self.device) for data in self._data)
            x = self.transform(x, noise_keys(start_of_stream, rows).to(x.device))
            yield (x, *others) if others else x


def _gather(data: Data, rows: Tensor, device: torch.device | str | None) -> Tensor:
    if isinstance(data, Tensor):
        chosen = data.index_select(0, rows.to(data.device))  # several times faster than data[rows]
    else:
        chosen = torch.from_numpy(np.asarray(data).take(rows.numpy(force=True), axis=0))
        _release_pages(data)
    return chosen if device is None else chosen.to(device, non_blocking=True)


def _release_pages(data: np.ndarray) -> None:
    """Release the pages of a mapped file, so that resident memory does not grow with the part that was read.

    The file, or the system's cache of it, still holds them. A copy-on-write map (mode "c") is left alone: its changes
    exist in those pages only.
    """
    if isinstance(data, np.memmap) and data.mode != "c" and hasattr(mmap, "MADV_DONTNEED"):
        base: Any = data
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, mmap.mmap):
            base.madvise(mmap.MADV_DONTNEED)


def _check_data(name: str, data: object) -> None:
    if not isinstance(data, Tensor | np.ndarray):
        kind = type(data).__name__
        raise TypeError(f"{name}: expected a tensor or a numpy array, got {kind}. Convert it with torch.as_tensor.")
    if isinstance(data, np.ndarray):
        try:
            torch.from_numpy(np.empty(0, data.dtype))
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name}: expected numbers of a type that torch knows, got {data.dtype}.") from error
    if data.ndim == 0 or len(data) == 0:
        raise ValueError(f"{name}: expected at least one datum, (N, *E) with N >= 1, got shape {tuple(data.shape)}.")
