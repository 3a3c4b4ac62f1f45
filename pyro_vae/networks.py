"""Networks: tensors in, tensors out, any number of leading dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ._checks import require_float, require_positive_int

__all__ = ["MLP"]


class MLP(nn.Sequential):
    """A multi-layer perceptron: affine maps with an activation between them, none after the last.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        hidden_dims: widths of the hidden layers; ``()`` gives one affine map.
        activation: what makes the activation, e.g. ``nn.SiLU`` or ``lambda: nn.LeakyReLU(0.1)``.

    Raises:
        ValueError: a width below 1; an input whose last dimension is not ``in_features``.
        TypeError: integer input, or floats of another width than the parameters.

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
        widths = [require_positive_int("in_features", in_features)]
        widths += [require_positive_int("hidden_dims", width) for width in hidden_dims]
        layers: list[nn.Module] = []
        for width, next_width in itertools.pairwise(widths):
            layers += [nn.Linear(width, next_width), activation()]
        layers.append(nn.Linear(widths[-1], require_positive_int("out_features", out_features)))
        super().__init__(*layers)
        self.in_features = in_features
        self.out_features = out_features

    @property
    def output(self) -> nn.Linear:
        """The last affine map; its bias is what the network gives where its input tells it nothing."""
        last = self[-1]
        assert isinstance(last, nn.Linear)
        return last

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(*, in_features)`` to ``(*, out_features)``."""
        require_float("input", input, self.output.weight.dtype)
        if input.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"input: expected shape (*, {self.in_features}) for MLP(in_features={self.in_features}), "
                f"got {tuple(input.shape)}. Flatten each datum to one vector (e.g. x.flatten(1)) or set in_features."
            )
        return super().forward(input)
