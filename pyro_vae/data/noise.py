r"""Random numbers that belong to a datum: a pure function of (seed, epoch, index of the datum).

A generator that is drawn from batch after batch ties the noise of a datum to all that was drawn before it. Here word
``j`` of datum ``i`` is read directly at its place in a SplitMix64 stream, so that the noise is the same whatever the
batch size, the order, the first batch, the number of processes and the device.

.. math:: w_{ij} = \operatorname{mix}(k_i + (j + 1)\,\gamma), \qquad k_i = k + 2^{32}\, i\, \gamma \pmod{2^{64}}

with :math:`\gamma` the golden-ratio increment, :math:`\operatorname{mix}` the finaliser of SplitMix64 and
:math:`k` the start of the stream of a (seed, epoch). Data of one epoch never share a word.

Source:
    G. L. Steele, D. Lea and C. H. Flood (2014), Fast splittable pseudorandom number generators, OOPSLA, section 5.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def _signed(word: int) -> int:
    """The int64 with these 64 bits: torch multiplies int64 modulo 2^64, as the stream wants it."""
    return (word + 2**63) % 2**64 - 2**63


_GAMMA = 0x9E3779B97F4A7C15


def _mix(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64, in place. The masks make torch's signed right shift a logical one."""
    z.bitwise_xor_((z >> 30).bitwise_and_(2**34 - 1)).mul_(_signed(0xBF58476D1CE4E5B9))
    z.bitwise_xor_((z >> 27).bitwise_and_(2**37 - 1)).mul_(_signed(0x94D049BB133111EB))
    return z.bitwise_xor_((z >> 31).bitwise_and_(2**33 - 1))


def stream(seed: int, *path: int) -> int:
    """The start of a stream, a 64-bit integer that is a pure function of a seed and, say, an epoch.

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
        if not isinstance(part, int) or isinstance(part, bool):
            raise TypeError(f"seed: expected an integer, got {type(part).__name__}. Pass a number such as seed=0.")
        if not 0 <= part < 2**63:
            raise ValueError(f"seed: expected an integer in [0, 2**63), got {part}.")
        start = _mix(start + part + _signed(_GAMMA))
    return int(start)


def noise_keys(start: int, index: Tensor) -> Tensor:
    """One key per datum, the place in the stream where its own words begin.

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
    """Random words of 64 bits.

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
    """Uniform noise in [0, 1) for a batch of data, for instance in a ``transform`` of :class:`~pyro_vae.data.Batches`.

    Args:
        keys: One key per datum, (B,) int64, as ``Batches`` hands them to its transform.
        shape: Shape ``E`` of the noise of one datum.

    Returns:
        Noise, (B, *E) float32, multiples of 2^-24.

    Example:
        Dequantisation, a transform that fills the gaps between the 256 grey levels with fresh noise each epoch:

        >>> import torch
        >>> from pyro_vae.data import Batches, uniform
        >>> images = torch.randint(0, 256, (100, 784), dtype=torch.uint8)
        >>> dequantise = lambda x, keys: (x + uniform(keys, x.shape[1:])) / 256
        >>> next(iter(Batches(images, batch_size=10, transform=dequantise))).shape
        torch.Size([10, 784])
    """
    n = math.prod(shape)
    words = bits(keys, (n + 1) // 2).view(torch.int32)[:, :n]
    return ((words >> 8).float() * 2**-24 + 0.5).reshape(len(keys), *shape)
