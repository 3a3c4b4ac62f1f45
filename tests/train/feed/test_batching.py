"""Samplers are told the epoch, wherever they are."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import images, make
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from pyro_vae.train import fit


class Told(SequentialSampler):
    def __init__(self, data: Any) -> None:
        super().__init__(data)
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


class ToldBatches(BatchSampler):
    def __init__(self, data: Any) -> None:
        super().__init__(SequentialSampler(data), 8, False)
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


DATA = TensorDataset(images(20))


def loaders() -> dict[str, Any]:
    sampler, inner, batches = Told(DATA), Told(DATA), ToldBatches(DATA)
    return {
        "sampler": (sampler, DataLoader(DATA, 8, sampler=sampler)),
        "sampler of the batch sampler": (inner, DataLoader(DATA, batch_sampler=BatchSampler(inner, 8, False))),
        "batch sampler": (batches, DataLoader(DATA, batch_sampler=batches)),
        "sampler that makes batches": (batches, DataLoader(DATA, sampler=batches, batch_size=None)),
    }


@pytest.mark.parametrize("kind", loaders())
def test_set_epoch(kind: str) -> None:
    sampler, loader = loaders()[kind]
    fit(make().svi, loader, epochs=3, progress=False)
    assert sampler.epochs == [0, 1, 2]
