"""Conversions of grey levels: to binary pixels, or to floats in [0, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._checks import require_tensor
from .noise import bits, noise_keys, stream, uniform


def binarize(images: Tensor, keys: Tensor | None = None, *, seed: int | None = None) -> Tensor:
    r"""Draw binary images: each pixel is 1 with the probability given by its grey level.

    .. math:: b_{ij} \sim \operatorname{Bernoulli}(x_{ij})

    with :math:`x_{ij}` in [0, 1] the grey level of pixel :math:`j` of image :math:`i`. Black always gives 0 and
    white always gives 1; between them the probability of a uint8 pixel is exact to 1.6e-5, of a float pixel to 6e-8.

    Pass it as ``transform`` to :class:`~pyro_vae.data.Batches` for dynamic binarization (new noise each epoch, for
    training), or call it once with a ``seed`` for a fixed binarization (for validation and test).

    Args:
        images: Grey images, (N, *E), uint8 in 0..255 or float in [0, 1].
        keys: One noise key per image, (N,) int64, as ``Batches`` hands them to its transform.
        seed: Seed of a fixed binarization, in place of ``keys``: image ``i`` gets the same noise in every call.

    Returns:
        Images with values 0 and 1, (N, *E), float32 (float64 for float64 images).

    Raises:
        TypeError: If the images are not a tensor of uint8, bool, float32 or float64.
        ValueError: If a float is outside [0, 1] or NaN, or if not exactly one of ``keys`` and ``seed`` is given.

    Example:
        >>> import torch
        >>> from pyro_vae.data import Batches, binarize
        >>> images = torch.tensor([[0, 128, 255], [0, 0, 255]], dtype=torch.uint8)
        >>> fixed = binarize(images, seed=0)
        >>> fixed[:, 0], fixed[:, 2], torch.equal(fixed, binarize(images, seed=0))
        (tensor([0., 0.]), tensor([1., 1.]), True)
        >>> train = Batches(images, batch_size=2, shuffle=True, transform=binarize)

    Source:
        R. Salakhutdinov and I. Murray (2008), On the quantitative analysis of deep belief networks, ICML, section 4.
    """
    _check_grey(images)
    if keys is None and seed is not None:
        keys = noise_keys(stream(seed), torch.arange(len(images), device=images.device))
    elif keys is None or seed is not None:
        raise ValueError("seed: expected exactly one of keys and seed. Pass seed=0 for a fixed binarization.")
    if images.dtype == torch.bool:
        return images.float()
    if images.is_floating_point():
        return (uniform(keys, images.shape[1:]) < images).to(images.dtype)
    # Each 64-bit word gives four 16-bit numbers u, uniform on -2^15 .. 2^15 - 1: u < 257 x - 2^15 has probability
    # 257 x / 2^16 = x / 255.004. The threshold of white is 2^15 - 1; the clamp keeps every u below it.
    n = math.prod(images.shape[1:])
    noise = bits(keys, (n + 3) // 4).view(torch.int16)[:, :n].clamp_max_(2**15 - 2)
    threshold = images.reshape(noise.shape).to(torch.int16).mul_(257).add_(-(2**15))
    # The comparison writes floats: several times faster than a comparison to bool and then a conversion.
    return torch.lt(noise, threshold, out=torch.empty(noise.shape, device=images.device)).reshape(images.shape)


def to_float(images: Tensor, keys: Tensor | None = None) -> Tensor:
    """Return grey levels as floats: uint8 in 0..255 becomes float32 in [0, 1]; other dtypes stay as they are.

    The default ``transform`` of :class:`~pyro_vae.data.Batches`.

    Args:
        images: Data, (N, *E).
        keys: Not used; every transform of ``Batches`` takes it.

    Returns:
        Data, (N, *E).

    Example:
        >>> to_float(torch.tensor([[0, 51, 255]], dtype=torch.uint8))
        tensor([[0.0000, 0.2000, 1.0000]])
    """
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def _check_grey(images: Tensor) -> None:
    require_tensor("images", images)
    if images.dtype not in (torch.uint8, torch.bool, torch.float32, torch.float64):
        raise TypeError(
            f"images: expected uint8 in 0..255, or float32 or float64 in [0, 1], got {images.dtype}. "
            "Convert it with images.to(torch.uint8) or images.float()."
        )
    if images.is_floating_point() and images.numel() > 0:
        low, high = images.aminmax()  # both are NaN if a value is
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"images: expected values in [0, 1], got values from {low:.4g} to {high:.4g}. "
                "Divide grey levels 0..255 by 255, or keep them as uint8."
            )
