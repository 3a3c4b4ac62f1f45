r"""Random numbers of a datum, as a pure function of (seed, epoch, index of the datum).

With one generator for all batches the noise of a datum would depend on everything that was drawn before. Here word
``j`` of datum ``i`` is computed from its position in a SplitMix64 stream, so that the noise is the same for every batch
size, order, first batch, number of processes and device.

.. math:: w_{ij} = \operatorname{mix}(k_i + (j + 1)\,\gamma), \qquad k_i = k + 2^{32}\, i\, \gamma \pmod{2^{64}}

with :math:`\gamma` the golden-ratio increment, :math:`\operatorname{mix}` the finalizer of SplitMix64 and
:math:`k` the start of the stream of a (seed, epoch). Two data of one epoch never use the same word.

Source:
    G. L. Steele, D. Lea and C. H. Flood (2014), Fast splittable pseudorandom number generators, OOPSLA, section 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._checks import as_int


def _signed(word: int) -> int:
    """Return the int64 with these 64 bits; torch multiplies int64 modulo 2^64, as SplitMix64 does."""
    return (word + 2**63) % 2**64 - 2**63


_GAMMA = 0x9E3779B97F4A7C15


def _mix(z: Tensor) -> Tensor:
    """Apply the finalizer of SplitMix64 in place. The masks make torch's signed right shift a logical one."""
    z.bitwise_xor_((z >> 30).bitwise_and_(2**34 - 1)).mul_(_signed(0xBF58476D1CE4E5B9))
    z.bitwise_xor_((z >> 27).bitwise_and_(2**37 - 1)).mul_(_signed(0x94D049BB133111EB))
    return z.bitwise_xor_((z >> 31).bitwise_and_(2**33 - 1))


def stream(seed: int, *path: int) -> int:
    """Return the start of a stream, a 64-bit integer that is a pure function of a seed and, for instance, an epoch.

    Args:
        seed: Any integer in [0, 2^63).
        *path: More integers in the same range, for instance the epoch; another path is another stream.

    Returns:
        An integer in [-2^63, 2^63).

    Raises:
        TypeError: If the seed is not an integer.
        ValueError: If the seed is out of range.

    Example:
        >>> stream(0, 1) == stream(0, 1), stream(0, 1) == stream(0, 2)
        (True, False)
    """
    start = torch.zeros((), dtype=torch.int64)
    for part in (seed, *path):
        number = as_int(part)
        if number is None:
            raise TypeError(f"seed: expected an integer, got {type(part).__name__}. Pass a number such as seed=0.")
        if not 0 <= number < 2**63:
            raise ValueError(f"seed: expected an integer in [0, 2**63), got {number}.")
        start = _mix(start + number + _signed(_GAMMA))
    return int(start)


def noise_keys(start: int, index: Tensor) -> Tensor:
    """Return one key per datum, the position in the stream where its words begin.

    Args:
        start: The start of the stream, from :func:`stream`.
        index: Indices of the data in the whole set, (B,) int64, each below 2^32.

    Returns:
        Keys, (B,) int64.

    Example:
        >>> noise_keys(stream(0), torch.arange(3)).shape
        torch.Size([3])
    """
    return index * _signed(_GAMMA << 32) + start


def bits(keys: Tensor, n: int) -> Tensor:
    """Return random words of 64 bits.

    Args:
        keys: One key per datum, (B,) int64.
        n: Number of words per datum.

    Returns:
        Words, (B, n) int64, every bit 0 or 1 with probability 1/2.

    Example:
        >>> words = bits(noise_keys(stream(0), torch.arange(2)), 3)
        >>> words.shape, torch.equal(words[1:], bits(noise_keys(stream(0), torch.tensor([1])), 3))
        (torch.Size([2, 3]), True)
    """
    return _mix(keys[:, None] + torch.arange(1, n + 1, device=keys.device).mul_(_signed(_GAMMA)))


def uniform(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Return uniform noise in [0, 1) for a batch of data.

    For instance in a ``transform`` of :class:`~pyro_vae.data.Batches`.

    Args:
        keys: One key per datum, (B,) int64, as ``Batches`` hands them to its transform.
        shape: Shape ``E`` of the noise of one datum.

    Returns:
        Noise, (B, *E) float32, multiples of 2^-24.

    Example:
        Dequantization, a transform that adds noise between the 256 grey levels, new in each epoch:

        >>> import torch
        >>> from pyro_vae.data import Batches, uniform
        >>> images = torch.randint(0, 256, (100, 784), dtype=torch.uint8)
        >>> dequantize = lambda x, keys: (x + uniform(keys, x.shape[1:])) / 256
        >>> next(iter(Batches(images, batch_size=10, transform=dequantize))).shape
        torch.Size([10, 784])
    """
    n = math.prod(shape)
    words = bits(keys, (n + 1) // 2).view(torch.int32)[:, :n]
    return ((words >> 8).float() * 2**-24 + 0.5).reshape(len(keys), *shape)
