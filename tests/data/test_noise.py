"""Noise: the published generator, uniform and independent, and a function of the datum alone."""

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_vae.data import uniform
from pyro_vae.data.noise import bits, noise_keys, stream


def test_words_are_those_of_splitmix64():
    words = bits(torch.tensor([1234567]), 5).numpy().view(np.uint64)[0].tolist()
    assert words == [  # the first five of the reference implementation for this seed
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_data_share_no_word_and_streams_differ():
    index = torch.arange(2000)
    words = [bits(noise_keys(stream(seed, epoch), index), 50) for seed in (0, 1) for epoch in (0, 1)]
    assert torch.cat(words).unique().numel() == 4 * 2000 * 50


def test_words_do_not_depend_on_the_company():
    keys = noise_keys(stream(5, 3), torch.arange(100))
    chosen = torch.tensor([17, 3, 99])
    assert torch.equal(bits(keys, 9)[chosen], bits(keys[chosen], 9))
    assert torch.equal(bits(keys, 9)[:, :4], bits(keys, 4))
    assert torch.equal(noise_keys(stream(5, 3), chosen), keys[chosen])


def test_uniform_is_uniform():
    u = uniform(noise_keys(stream(0), torch.arange(500)), (20, 7))
    assert u.shape == (500, 20, 7)
    assert u.dtype == torch.float32
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u.flatten().double().numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("lag", [1, 2, 3, 140])
def test_neighbours_are_independent(lag):
    """Pairs of values, lag 140 being the same pixel of the next datum, fill a 16 x 16 table evenly."""
    u = uniform(noise_keys(stream(1), torch.arange(2000)), (140,)).flatten()
    cell = (u[:-lag] * 16).long() * 16 + (u[lag:] * 16).long()
    assert stats.chisquare(cell.bincount(minlength=256).numpy()).pvalue > 1e-3


def test_epochs_are_independent():
    index = torch.arange(2000)
    u, v = (uniform(noise_keys(stream(0, epoch), index), (140,)).flatten() for epoch in (0, 1))
    cell = (u * 16).long() * 16 + (v * 16).long()
    assert stats.chisquare(cell.bincount(minlength=256).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("seed", [1.0, "0", None, True])
def test_a_seed_is_an_integer(seed):
    with pytest.raises(TypeError, match="seed: expected an integer, got"):
        stream(seed)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_has_a_range(seed):
    with pytest.raises(ValueError, match=r"seed: expected an integer in \[0, 2\*\*63\)"):
        stream(seed)
