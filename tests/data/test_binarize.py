"""Binarisation: each pixel is white with the probability of its grey level."""

import pytest
import torch
from scipy import stats

from pyro_vae.data import Batches, binarize, to_float
from pyro_vae.data.noise import noise_keys, stream

LEVELS = torch.arange(256, dtype=torch.uint8)


def fit_pvalue(white: torch.Tensor, n: int, probability: torch.Tensor) -> float:
    """Chi-square p-value of counts of white pixels against binomials."""
    p = probability.double()
    z2 = (white.double() - n * p).square() / (n * p * (1 - p))
    return float(stats.chi2.sf(z2.sum().item(), len(p)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_every_grey_level_has_its_probability(dtype):
    n = 40_000
    images = (LEVELS if dtype == torch.uint8 else LEVELS.to(dtype) / 255).expand(n, 256)
    white = binarize(images, seed=0).sum(0, dtype=torch.float64)
    assert (white[0], white[255]) == (0, n)
    p = LEVELS[1:255] / 255
    assert fit_pvalue(white[1:255], n, p) > 1e-3
    assert fit_pvalue(white[1:255], n, p * 0.995) < 1e-6  # half a per cent off would be seen


def test_thresholds_are_exact_to_two_parts_in_a_hundred_thousand(monkeypatch):
    """All 2^16 values of the noise, once each: the share of white is the probability itself."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.int64)

    def bits(keys, n):
        return every.reshape(-1, 1).clone()

    monkeypatch.setitem(binarize.__globals__, "bits", bits)
    for level in (0, 1, 2, 64, 127, 128, 129, 200, 253, 254, 255):
        images = torch.full((2**14, 4), level, dtype=torch.uint8)
        share = binarize(images, seed=0).double().mean().item()
        assert abs(share - level / 255) < (1.6e-5 if 0 < level < 255 else 1e-15)


def test_pixels_are_independent():
    """The 16 patterns of four pixels, in one word of noise or across two, have their product probabilities."""
    p = 77 / 255
    black_white = binarize(torch.full((60_000, 8), 77, dtype=torch.uint8), seed=3)
    for first in (0, 2, 4):
        pattern = (black_white[:, first : first + 4].long() * torch.tensor([8, 4, 2, 1])).sum(1)
        expected = [60_000 * p ** k.bit_count() * (1 - p) ** (4 - k.bit_count()) for k in range(16)]
        assert stats.chisquare(pattern.bincount(minlength=16).numpy(), expected).pvalue > 1e-3


def test_new_noise_each_epoch_with_the_right_frequencies():
    images = torch.randint(1, 255, (32, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batches = Batches(images, batch_size=8, transform=binarize)
    white = sum(torch.cat(list(batches)) for _ in range(1500))
    assert fit_pvalue(white.flatten(), 1500, images.flatten() / 255) > 1e-3


def test_black_stays_black_and_white_white():
    images = torch.tensor([0, 255], dtype=torch.uint8).repeat(1000, 300)
    assert torch.equal(binarize(images, seed=0), images.float() / 255)
    assert torch.equal(binarize(images.float() / 255, seed=0), images.float() / 255)
    assert torch.equal(binarize(images.bool(), seed=0), images.float() / 255)


@pytest.mark.parametrize("shape", [(6, 28, 28), (5, 1, 3, 3), (4, 7), (3,), (0, 784)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bool])
def test_shapes_and_dtypes(shape, dtype):
    images = torch.ones(shape).to(dtype)
    black_white = binarize(images, seed=0)
    assert black_white.shape == shape
    assert black_white.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_fixed_by_the_seed_whatever_is_done_in_between():
    images = LEVELS.expand(50, 256)
    first = binarize(images, seed=7)
    state = torch.get_rng_state()
    torch.rand(3)
    assert torch.equal(binarize(images, seed=7), first)
    torch.set_rng_state(state)
    binarize(images, seed=7)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not drawn from
    assert not torch.equal(binarize(images, seed=8), first)
    assert torch.equal(binarize(images[:20], seed=7), first[:20])


def test_images_are_not_changed():
    images = LEVELS.repeat(4, 1)
    binarize(images, seed=0), to_float(images)
    assert torch.equal(images, LEVELS.repeat(4, 1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.01, 1.01, 255.0])
def test_values_outside_the_unit_interval_are_refused(bad):
    images = torch.full((3, 4), 0.5)
    images[1, 2] = bad
    with pytest.raises(ValueError, match=r"images: expected values in \[0, 1\], got values from .*Divide grey levels"):
        binarize(images, seed=0)


@pytest.mark.parametrize("bad", [torch.ones(2, 3).half(), torch.ones(2, 3).long(), [[0.5]], None])
def test_other_types_are_refused(bad):
    with pytest.raises(TypeError, match=r"images: expected .*Convert it"):
        binarize(bad, seed=0)


def test_exactly_one_source_of_noise():
    images = LEVELS.expand(2, 256)
    keys = noise_keys(stream(0), torch.arange(2))
    assert torch.equal(binarize(images, keys), binarize(images, seed=0))
    with pytest.raises(ValueError, match="expected exactly one of keys and seed"):
        binarize(images)
    with pytest.raises(ValueError, match="expected exactly one of keys and seed"):
        binarize(images, keys, seed=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_same_on_a_gpu():
    for images in (LEVELS.expand(300, 256), LEVELS.expand(300, 256) / 255):
        assert torch.equal(binarize(images.cuda(), seed=0).cpu(), binarize(images, seed=0))


def test_to_float():
    assert torch.equal(to_float(LEVELS), LEVELS.float() / 255)
    for other in (torch.rand(3), torch.rand(3).double(), torch.arange(3), torch.rand(3) > 0.5):
        assert to_float(other) is other
