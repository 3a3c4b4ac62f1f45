"""Batches: every datum once an epoch, and each batch a pure function of seed, epoch and number."""

import copy
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_vae.data import Batches, binarize

N = 103
IMAGES = torch.randint(0, 256, (N, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ROWS = torch.arange(N)


def same(a, b) -> bool:
    """Whether two lists of batches are equal, tensors or tuples of them."""
    flat_a, flat_b = ([part for batch in batches for part in batch] for batches in (a, b))
    return len(a) == len(b) and len(flat_a) == len(flat_b) and all(map(torch.equal, flat_a, flat_b))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 10, 103, 1000])
def test_every_datum_once_an_epoch(shuffle, batch_size):
    batches = Batches(IMAGES, ROWS, batch_size=batch_size, shuffle=shuffle)
    for _ in range(2):
        epoch = list(batches)
        assert len(epoch) == len(batches) == -(-N // batch_size)
        assert all(len(x) == batch_size for x, _ in epoch[:-1])
        rows = torch.cat([rows for _, rows in epoch])
        assert torch.equal(rows.sort().values, ROWS)
        assert torch.equal(rows, ROWS) != shuffle
        assert torch.equal(torch.cat([x for x, _ in epoch]), IMAGES[rows].float() / 255)  # others go with their datum


def test_drop_last():
    batches = Batches(IMAGES, batch_size=10, drop_last=True)
    assert [len(x) for x in batches] == [10] * 10
    assert len(batches) == 10


def test_a_new_order_each_epoch_and_seed():
    orders = [
        torch.cat(list(Batches(ROWS, batch_size=10, shuffle=True, seed=seed).iterate(epoch)))
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    ]
    assert len({tuple(order.tolist()) for order in orders}) == 6


def test_orders_are_uniform():
    """Over many epochs each datum is as often in each place: 5 data, 5 places, expected 400 times each."""
    batches = Batches(torch.arange(5), batch_size=5, shuffle=True)
    table = torch.zeros(5, 5)
    for order in (next(batches.iterate(epoch)) for epoch in range(2000)):
        table[torch.arange(5), order] += 1
    statistic = 4 / 5 * ((table - 400).square() / 400).sum().item()  # each row and column adds up to 2000, by design
    assert stats.chi2.sf(statistic, 16) > 1e-3


def make(**options) -> Batches:
    return Batches(IMAGES, ROWS, **{"batch_size": 10, "shuffle": True, "seed": 3, "transform": binarize} | options)


def test_a_batch_is_a_pure_function_of_seed_epoch_and_number():
    batches = make()
    whole = {epoch: list(batches.iterate(epoch)) for epoch in (0, 1, 7)}
    torch.rand(5)
    for epoch, expected in whole.items():
        for start in (0, 1, 5, 10, 11):
            assert same(list(make().iterate(epoch, start)), expected[start:])
    assert not same(whole[0], whole[1])


def test_passes_count_epochs_and_do_not_disturb_each_other():
    batches = make()
    first, second = zip(*zip(batches, batches, strict=True), strict=True)
    assert same(first, list(make().iterate(0)))
    assert same(second, list(make().iterate(1)))
    assert batches.epoch == 2
    batches.epoch = 0
    next(iter(batches))  # a pass that is broken off counts too
    assert same(list(batches), list(make().iterate(1)))
    list(batches.iterate(9))
    assert batches.epoch == 2


def test_an_iterator_keeps_its_epoch():
    batches = make()
    first = iter(batches)
    batches.epoch = 5
    assert same(list(first), list(make().iterate(0)))


def test_the_noise_of_a_datum_depends_on_neither_batch_size_nor_order():
    reference = torch.cat([x for x, _ in make(shuffle=False).iterate(4)])
    for batch_size in (1, 7, 64, 1000):
        for x, rows in make(batch_size=batch_size).iterate(4):
            assert torch.equal(x, reference[rows])


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 10])
@pytest.mark.parametrize("drop_last", [False, True])
def test_shards_together_are_the_whole(world_size, drop_last):
    batches = make(drop_last=drop_last)
    shards = [batches.shard(rank, world_size) for rank in range(world_size)]
    assert [len(shard) for shard in shards] == [len(batches)] * world_size
    for epoch in (0, 1):
        for whole, *parts in zip(batches, *shards, strict=True):
            sizes = [len(x) for x, _ in parts]
            assert max(sizes) - min(sizes) <= 1
            for k in (0, 1):  # images with their noise, then labels
                assert torch.equal(torch.cat([part[k] for part in parts]), whole[k])
            assert min(sizes) >= 1 or len(whole[0]) < world_size
        assert {b.epoch for b in (batches, *shards)} == {epoch + 1}


def test_an_empty_share_keeps_its_shape():
    last = list(make().shard(0, 10))[-1]  # three data in the last batch, ten processes
    assert last[0].shape == (0, 12)
    assert last[1].shape == (0,)


def test_data_stay_as_given_and_batches_are_floats():
    batches = Batches(IMAGES, batch_size=10)
    assert batches._data[0] is IMAGES
    before = IMAGES.clone()
    for x in batches:
        assert x.dtype == torch.float32
        x.zero_()
    assert torch.equal(IMAGES, before)


@pytest.mark.parametrize("shape", [(9,), (9, 3), (9, 2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_any_shape_and_dtype(shape, dtype):
    x = torch.ones(shape).to(dtype)
    batch = next(iter(Batches(x, batch_size=4)))
    assert (batch.shape, batch.dtype) == ((4, *shape[1:]), dtype)


def test_transform_gets_data_and_keys():
    seen = []

    def double(x, keys):
        seen.append(keys)
        return 2 * x

    x = torch.cat(list(Batches(torch.arange(8.0), batch_size=4, transform=double, device="cpu")))
    assert torch.equal(x, 2 * torch.arange(8.0))
    assert torch.cat(seen).unique().numel() == 8


def test_arrays_and_tensors_are_alike():
    array = IMAGES.numpy().copy()
    array.flags.writeable = False
    assert same(list(Batches(array, ROWS.numpy(), **OPTIONS)), list(Batches(IMAGES, ROWS, **OPTIONS)))


OPTIONS = {"batch_size": 10, "shuffle": True, "transform": binarize}


def test_copies_and_pickles_go_on_alike():
    batches = make()
    next(iter(batches))
    for other in (copy.deepcopy(batches), pickle.loads(pickle.dumps(batches))):
        assert same(list(other), list(make().iterate(1)))


def mapped(path: Path, rows: int) -> np.memmap:
    return np.memmap(path, dtype=np.uint8, mode="w+", shape=(rows, 784))


def test_a_mapped_file_is_read_like_an_array(tmp_path):
    images = mapped(tmp_path / "images", 50)
    images[:] = np.random.default_rng(0).integers(0, 256, images.shape)
    expected = list(Batches(np.array(images), **OPTIONS))
    for view in (images, images[:], np.memmap(tmp_path / "images", dtype=np.uint8, mode="r", shape=images.shape)):
        assert same(list(Batches(view, **OPTIONS)), expected)
    np.save(tmp_path / "images.npy", images)
    assert same(list(Batches(np.load(tmp_path / "images.npy", mmap_mode="r"), **OPTIONS)), expected)


def test_unsaved_changes_of_a_mapped_file_survive(tmp_path):
    mapped(tmp_path / "images", 50)  # all zero, and still so on disk after the first, copy-on-write turn
    for mode in ("c", "r+"):
        images = np.memmap(tmp_path / "images", dtype=np.uint8, mode=mode, shape=(50, 784))
        images[:] = 51
        for _ in range(2):
            assert torch.equal(torch.cat(list(Batches(images, batch_size=10))), torch.full((50, 784), 0.2))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat_over_a_large_mapped_file(tmp_path):
    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096

    images = mapped(tmp_path / "images", 200_000)  # 157 MB, all holes
    batches = Batches(images, batch_size=1000, shuffle=True)
    next(iter(batches))
    before = resident()
    peak = max(resident() for _ in batches)
    assert peak - before < 30e6


def test_says_what_it_is():
    batches = make()
    text = "Batches(103 of (12,) uint8, batch_size=10, 11 batches, shuffle=True, seed=3"
    assert repr(batches) == repr(make(batch_size=np.int64(10))) == f"{text})"
    assert repr(batches.shard(1, 2)) == f"{text}, shard 1 of 2)"


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ([torch.zeros(0, 784)], {}, ValueError, r"x: expected at least one datum, .* got shape \(0, 784\)"),
        ([torch.tensor(1.0)], {}, ValueError, r"x: expected at least one datum, .* got shape \(\)"),
        ([[1.0, 2.0]], {}, TypeError, "x: expected a tensor or a numpy array, got list. Convert it"),
        ([5], {}, TypeError, "x: expected a tensor or a numpy array, got int"),
        ([np.array(["a", "b"])], {}, TypeError, "x: expected numbers of a type that torch knows, got <U1"),
        (
            [np.array([1.0]).astype(">f8")],
            {},
            (TypeError, ValueError),
            "x: expected numbers of a type that torch knows",
        ),
        ([IMAGES, ROWS[:99]], {}, ValueError, r"others\[0\]: expected 103 rows as in x, got 99"),
        ([IMAGES, ROWS, [1]], {}, TypeError, r"others\[1\]: expected a tensor or a numpy array, got list"),
        ([IMAGES], {"batch_size": 0}, ValueError, "batch_size: expected an integer of at least 1, got 0"),
        ([IMAGES], {"batch_size": -5}, ValueError, "batch_size: expected an integer of at least 1, got -5"),
        ([IMAGES], {"batch_size": 8.0}, ValueError, "batch_size: expected an integer of at least 1, got 8.0"),
        ([IMAGES], {"batch_size": True}, ValueError, "batch_size: expected an integer of at least 1, got True"),
        ([IMAGES], {"batch_size": 104, "drop_last": True}, ValueError, "batch_size: expected at most the 103 data"),
        ([IMAGES], {"seed": -1}, ValueError, r"seed: expected an integer in \[0, 2\*\*63\), got -1"),
        ([IMAGES], {"seed": None}, TypeError, "seed: expected an integer, got NoneType"),
        ([IMAGES], {"transform": "binarize"}, TypeError, "transform: expected a function .* got str"),
    ],
)
def test_bad_arguments(data, options, error, message):
    with pytest.raises(error, match=message):
        Batches(*data, **{"batch_size": 10} | options)


@pytest.mark.parametrize(("epoch", "start", "message"), [(-1, 0, "epoch: "), (0, -1, "start: "), (0, 12, "start: ")])
def test_bad_places(epoch, start, message):
    with pytest.raises(ValueError, match=message):
        make().iterate(epoch, start)


@pytest.mark.parametrize(
    ("rank", "world_size", "message"), [(2, 2, "rank: "), (-1, 2, "rank: "), (0, 0, "rank: "), (0, 11, "world_size: ")]
)
def test_bad_shards(rank, world_size, message):
    with pytest.raises(ValueError, match=message):
        make().shard(rank, world_size)
