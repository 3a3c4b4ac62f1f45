"""Splits: every datum once, the same for the same seed, and random."""

import pytest
import torch

from pyro_vae.data import split


def test_every_datum_is_in_one_part():
    parts = split(torch.arange(1000), sizes=(700, 250, 50), seed=4)
    assert [len(part) for part in parts] == [700, 250, 50]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(1000))
    assert not torch.equal(parts[0].sort().values, torch.arange(700))


def test_others_are_split_alike():
    x = torch.arange(100)
    (a, a2, a3), (b, b2, b3) = split(x, 2 * x, x[:, None].expand(100, 3), sizes=(60, 40))
    assert torch.equal(a2, 2 * a)
    assert torch.equal(b2, 2 * b)
    assert torch.equal(a3[:, 1], a)
    assert b3.shape == (40, 3)


def test_the_seed_decides():
    x = torch.arange(200)
    first, again, other = (split(x, sizes=(100, 100), seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("sizes", [(50, 40), (50, 60), (100, 0), (110, -10), ()])
def test_sizes_add_up(sizes):
    with pytest.raises(ValueError, match="sizes: expected positive numbers that add up to the 100 data, got"):
        split(torch.arange(100), sizes=sizes)


def test_bad_data():
    with pytest.raises(ValueError, match=r"others\[1\]: expected 10 rows as in x, got 9"):
        split(torch.arange(10), torch.arange(10), torch.arange(9), sizes=(5, 5))
    with pytest.raises(TypeError, match=r"x: expected a torch\.Tensor, got list"):
        split([1, 2], sizes=(1, 1))
    with pytest.raises(TypeError, match="seed: expected an integer, got float"):
        split(torch.arange(10), sizes=(5, 5), seed=0.5)
