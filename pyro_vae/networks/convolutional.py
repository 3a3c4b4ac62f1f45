"""Convolutional networks for images of any shape."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .._checks import require_event_shape, require_float, require_positive_int, require_shape
from .activation import make_activation
from .leading_dims import AnyLeadingDims
from .mlp import MLP

__all__ = ["ConvDecoder", "ConvEncoder"]


class ConvEncoder(nn.Module):
    """A network from images to vectors: convolutions that halve height and width, then an ``MLP``.

    Args:
        image_shape: ``(C, H, W)``, any sizes.
        out_features: width of the output.
        channels: channels after each convolution; each halves height and width, rounding up.
        activation: a function that returns the activation module.
        kernel_size: an odd number.
        hidden_dims: widths of the hidden layers between the last feature map and the output; ``()`` for none.

    Raises:
        ValueError: a size below 1; ``image_shape`` that has not three dimensions; an even ``kernel_size``; (from
            ``forward``) images of another shape.
        TypeError: ``activation`` does not return a module; images that are not floats of the parameters' dtype.

    Example:
        >>> encoder = ConvEncoder((1, 28, 28), 2 * 32)
        >>> encoder(torch.zeros(3, 5, 1, 28, 28)).shape
        torch.Size([3, 5, 64])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        out_features: int,
        channels: Sequence[int] = (32, 64),
        activation: Callable[[], nn.Module] = nn.SiLU,
        *,
        kernel_size: int = 3,
        hidden_dims: Sequence[int] = (500,),
    ) -> None:
        super().__init__()
        self.image_shape = _image_shape(image_shape)
        self.out_features = require_positive_int("out_features", out_features)
        kernel_size = _odd(kernel_size)
        depths = [self.image_shape[0], *_channels(channels)]
        layers: list[nn.Module] = []
        for depth, next_depth in itertools.pairwise(depths):
            convolution = nn.Conv2d(depth, next_depth, kernel_size, stride=2, padding=kernel_size // 2)
            layers += [convolution, make_activation(activation)]
        height, width = _halved(self.image_shape, len(depths) - 1)[-1]
        head = MLP(depths[-1] * height * width, self.out_features, hidden_dims, activation)
        self.network = AnyLeadingDims(nn.Sequential(*layers, nn.Flatten(), head), event_dim=3)

    @property
    def output(self) -> nn.Linear:
        """The last affine map."""
        return self.network.network[-1].output  # type: ignore[index]

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(*, C, H, W)`` to ``(*, out_features)``."""
        require_float("input", input, self.output.weight.dtype)
        require_event_shape("input", input, self.image_shape, "ConvEncoder")
        return self.network(input)


class ConvDecoder(nn.Module):
    """A network from vectors to images: an ``MLP``, then transposed convolutions that double height and width.

    The mirror image of ``ConvEncoder``. The output has a bias for each element of the image, not one for each channel,
    so that ``initialize_output_bias`` of a likelihood can start from the mean image.

    Args:
        in_features: width of the input.
        image_shape: ``(C, H, W)``, any sizes; for a likelihood with two numbers per element, ``(2 * C, H, W)``.
        channels: channels before each transposed convolution.
        activation: a function that returns the activation module.
        kernel_size: an odd number.
        hidden_dims: widths of the hidden layers between the input and the first feature map; ``()`` for none.

    Raises:
        ValueError: a size below 1; ``image_shape`` that has not three dimensions; an even ``kernel_size``; (from
            ``forward``) an input whose last dimension is not ``in_features``.
        TypeError: ``activation`` does not return a module; input that is not floats of the parameters' dtype.

    Example:
        >>> import pyro_vae as pv
        >>> likelihood = pv.BernoulliLikelihood(ConvDecoder(32, (1, 28, 28)), event_shape=(1, 28, 28))
        >>> likelihood(torch.zeros(3, 5, 32)).event_shape
        torch.Size([1, 28, 28])
    """

    def __init__(
        self,
        in_features: int,
        image_shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        activation: Callable[[], nn.Module] = nn.SiLU,
        *,
        kernel_size: int = 3,
        hidden_dims: Sequence[int] = (500,),
    ) -> None:
        super().__init__()
        self.in_features = require_positive_int("in_features", in_features)
        self.image_shape = _image_shape(image_shape)
        kernel_size = _odd(kernel_size)
        depths = [*_channels(channels), self.image_shape[0]]
        sizes = _halved(self.image_shape, len(depths) - 1)[::-1]
        first = (depths[0], *sizes[0])
        layers: list[nn.Module] = [
            MLP(self.in_features, first[0] * first[1] * first[2], hidden_dims, activation),
            nn.Unflatten(1, first),
        ]
        for i, (depth, next_depth) in enumerate(itertools.pairwise(depths)):
            height, width = sizes[i + 1]
            convolution = nn.ConvTranspose2d(
                depth,
                next_depth,
                kernel_size,
                stride=2,
                padding=kernel_size // 2,
                output_padding=(1 - height % 2, 1 - width % 2),  # from n rows to 2 n, or to 2 n - 1
                bias=i < len(depths) - 2,  # the last one's is that of the output
            )
            layers += [make_activation(activation), convolution]
        self.network = AnyLeadingDims(nn.Sequential(*layers), event_dim=1)
        self.output = _ElementBias(self.image_shape)

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(*, in_features)`` to ``(*, C, H, W)``."""
        require_float("input", input, self.output.bias.dtype)
        if input.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"input: expected shape (*, {self.in_features}) for ConvDecoder(in_features={self.in_features}), "
                f"got {tuple(input.shape)}. Set in_features to the dimension of z."
            )
        return self.output(self.network(input))


class _ElementBias(nn.Module):
    """A learned number added to each element of an image; ``bias`` is flat, as that of an affine map."""

    def __init__(self, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.bias = nn.Parameter(torch.zeros(image_shape).flatten())

    def forward(self, input: Tensor) -> Tensor:
        return input + self.bias.view(self.image_shape)


def _image_shape(value: Sequence[int]) -> tuple[int, ...]:
    shape = require_shape("image_shape", value)
    if shape is None or len(shape) != 3:
        raise ValueError(f"image_shape: expected (C, H, W), got {value!r}. Write (1, H, W) for grey images.")
    return shape


def _channels(channels: Sequence[int]) -> list[int]:
    if isinstance(channels, int) or len(channels) == 0:
        raise ValueError(f"channels: expected a sequence of at least one integer, got {channels!r}. Write (32, 64).")
    return [require_positive_int("channels", depth) for depth in channels]


def _odd(kernel_size: int) -> int:
    size = require_positive_int("kernel_size", kernel_size)
    if size % 2 == 0:
        raise ValueError(f"kernel_size: expected an odd number, got {size}. Take {size + 1}.")
    return size


def _halved(image_shape: tuple[int, ...], times: int) -> list[tuple[int, int]]:
    """Return height and width, then those after each convolution of stride 2."""
    sizes = [(image_shape[1], image_shape[2])]
    for _ in range(times):
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes
