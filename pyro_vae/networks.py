"""Networks: modules that map tensors to tensors, with any number of leading dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ._checks import require_float, require_positive_int

__all__ = ["MLP", "AnyLeadingDims"]


class MLP(nn.Module):
    """A multi-layer perceptron: affine maps with an activation between them, none after the last.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        hidden_dims: widths of the hidden layers; ``()`` gives one affine map.
        activation: a function that returns the activation module, e.g. ``nn.SiLU`` or ``lambda: nn.LeakyReLU(0.1)``.

    Raises:
        ValueError: a width below 1; an input whose last dimension is not ``in_features``.
        TypeError: ``activation`` does not return a module; input that is not floats of the parameters' dtype.

    Example:
        >>> import torch
        >>> network = MLP(784, 64, hidden_dims=(500, 500))
        >>> network(torch.zeros(3, 5, 784)).shape
        torch.Size([3, 5, 64])
        >>> network.output
        Linear(in_features=500, out_features=64, bias=True)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_dims: Sequence[int] = (500, 500),
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        if isinstance(hidden_dims, int):
            raise TypeError(f"hidden_dims: expected a sequence of integers, got {hidden_dims}. Write ({hidden_dims},).")
        self.in_features = require_positive_int("in_features", in_features)
        self.out_features = require_positive_int("out_features", out_features)
        widths = [self.in_features, *(require_positive_int("hidden_dims", width) for width in hidden_dims)]
        layers: list[nn.Module] = []
        for width, next_width in itertools.pairwise(widths):
            layers += [nn.Linear(width, next_width), _make(activation)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], self.out_features))

    @property
    def output(self) -> nn.Linear:
        """The last affine map. ``initialize_output_bias`` of the likelihoods writes its bias."""
        return self.layers[-1]  # type: ignore[return-value]

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(*, in_features)`` to ``(*, out_features)``."""
        require_float("input", input, self.output.weight.dtype)
        if input.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"input: expected shape (*, {self.in_features}) for MLP(in_features={self.in_features}), "
                f"got {tuple(input.shape)}. Flatten each datum to one vector (e.g. x.flatten(1)) or set in_features."
            )
        return self.layers(input)


class AnyLeadingDims(nn.Module):
    """A network that takes exactly one batch dimension, as convolutions do, made to take any number of them.

    A decoder needs this: with K particles its input has shape ``(K, B, D)``.

    Args:
        network: maps ``(N, *I)`` to ``(N, *O)``.
        event_dim: number of dimensions of one input, ``len(I)``: 1 for vectors, 3 for images ``(C, H, W)``.

    Returns:
        ``forward(input)`` maps ``(*, *I)`` to ``(*, *O)``.

    Raises:
        ValueError: the input has fewer than ``event_dim`` dimensions.

    Example:
        >>> import torch
        >>> decoder = nn.Sequential(nn.Linear(2, 32), nn.Unflatten(1, (2, 4, 4)), nn.Conv2d(2, 1, 1))
        >>> AnyLeadingDims(decoder, event_dim=1)(torch.zeros(7, 5, 2)).shape
        torch.Size([7, 5, 1, 4, 4])
    """

    def __init__(self, network: nn.Module, event_dim: int) -> None:
        super().__init__()
        self.network = network
        self.event_dim = require_positive_int("event_dim", event_dim)

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(*, *I)`` to ``(*, *O)``."""
        leading = input.ndim - self.event_dim
        if leading < 0:
            raise ValueError(
                f"input: expected at least {self.event_dim} dimensions, those of one datum, got {tuple(input.shape)}."
            )
        output = self.network(input.reshape(-1, *input.shape[leading:]))
        return output.reshape(*input.shape[:leading], *output.shape[1:])


def _make(activation: Callable[[], nn.Module]) -> nn.Module:
    try:
        made = activation()
    except TypeError:
        made = None
    if not isinstance(made, nn.Module):
        raise TypeError(
            f"activation: expected a function that returns a module, such as nn.SiLU, got {activation!r}. "
            "Give the class, or a function: lambda: nn.LeakyReLU(0.1)."
        )
    return made
