"""Multi-layer perceptrons, plain, residual and gated."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from .._checks import require_float, require_positive_int
from .activation import make_activation

__all__ = ["MLP", "GatedMLP"]


class MLP(nn.Module):
    r"""A multi-layer perceptron: affine maps with an activation between them, none after the last.

    .. math:: h_{l+1} = a(W_l h_l + b_l), \qquad \text{residual: } h_{l+1} = h_l + a(W_l h_l + b_l)

    Args:
        in_features: width of the input.
        out_features: width of the output.
        hidden_dims: widths of the hidden layers; ``()`` gives one affine map.
        activation: a function that returns the activation module, e.g. ``nn.SiLU`` or ``lambda: nn.LeakyReLU(0.1)``.
        residual: whether a hidden layer that is as wide as its input adds its input to its output.

    Raises:
        ValueError: a width below 1; ``residual`` with no hidden layer as wide as its input; (from ``forward``) an input
            whose last dimension is not ``in_features``.
        TypeError: ``activation`` does not return a module; input that is not floats of the parameters' dtype.

    Example:
        >>> import torch
        >>> network = MLP(784, 64, hidden_dims=(500, 500))
        >>> network(torch.zeros(3, 5, 784)).shape
        torch.Size([3, 5, 64])
        >>> network.output
        Linear(in_features=500, out_features=64, bias=True)

    Source:
        For ``residual``: He, Zhang, Ren and Sun (2016), Deep residual learning for image recognition, equation 1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_dims: Sequence[int] = (500, 500),
        activation: Callable[[], nn.Module] = nn.SiLU,
        *,
        residual: bool = False,
    ) -> None:
        super().__init__()
        widths = _widths(in_features, hidden_dims)
        self.in_features = widths[0]
        self.out_features = require_positive_int("out_features", out_features)
        self.residual = residual
        pairs = list(itertools.pairwise(widths))
        if residual and all(width != next_width for width, next_width in pairs):
            raise ValueError(
                f"residual: expected a hidden layer as wide as its input, got widths {tuple(widths)}. "
                "Repeat a width, for instance hidden_dims=(500, 500), or leave residual out."
            )
        layers: list[nn.Module] = []
        for width, next_width in pairs:
            layers += [nn.Linear(width, next_width), make_activation(activation)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], self.out_features))

    @property
    def output(self) -> nn.Linear:
        """The last affine map. ``initialize_output_bias`` of the likelihoods writes its bias."""
        return self.layers[-1]  # type: ignore[return-value]

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(*, in_features)`` to ``(*, out_features)``."""
        _require_width(self, input)
        if not self.residual:
            return self.layers(input)
        *hidden, output = self.layers
        h = input
        for affine, activation in zip(hidden[::2], hidden[1::2], strict=True):
            change = activation(affine(h))
            h = h + change if h.shape == change.shape else change
        return output(h)


class GatedMLP(nn.Module):
    r"""A multi-layer perceptron whose hidden layers are gated linear units.

    .. math:: h_{l+1} = (W_l h_l + b_l) \odot \sigma(V_l h_l + c_l)

    Args:
        in_features: width of the input.
        out_features: width of the output.
        hidden_dims: widths of the hidden layers; each has two affine maps, to the values and to the gates.

    Raises:
        ValueError: a width below 1; (from ``forward``) an input whose last dimension is not ``in_features``.
        TypeError: input that is not floats of the parameters' dtype.

    Example:
        >>> import torch
        >>> GatedMLP(784, 64, hidden_dims=(300, 300))(torch.zeros(3, 5, 784)).shape
        torch.Size([3, 5, 64])

    Source:
        Dauphin, Fan, Auli and Grangier (2017), Language modeling with gated convolutional networks, equation 1;
        in VAEs, Tomczak and Welling (2018), VAE with a VampPrior, section 5.
    """

    def __init__(self, in_features: int, out_features: int, hidden_dims: Sequence[int] = (300, 300)) -> None:
        super().__init__()
        widths = _widths(in_features, hidden_dims)
        self.in_features = widths[0]
        self.out_features = require_positive_int("out_features", out_features)
        layers: list[nn.Module] = []
        for width, next_width in itertools.pairwise(widths):
            layers += [nn.Linear(width, 2 * next_width), nn.GLU(dim=-1)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], self.out_features))

    @property
    def output(self) -> nn.Linear:
        """The last affine map. ``initialize_output_bias`` of the likelihoods writes its bias."""
        return self.layers[-1]  # type: ignore[return-value]

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(*, in_features)`` to ``(*, out_features)``."""
        _require_width(self, input)
        return self.layers(input)


def _widths(in_features: int, hidden_dims: Sequence[int]) -> list[int]:
    """Return the widths of input and hidden layers."""
    if isinstance(hidden_dims, int):
        raise TypeError(f"hidden_dims: expected a sequence of integers, got {hidden_dims}. Write ({hidden_dims},).")
    hidden = [require_positive_int("hidden_dims", width) for width in hidden_dims]
    return [require_positive_int("in_features", in_features), *hidden]


def _require_width(network: MLP | GatedMLP, input: Tensor) -> None:
    """Refuse an input of another dtype than the parameters', or of another width than the network's."""
    require_float("input", input, network.output.weight.dtype)
    if input.shape[-1:] != (network.in_features,):
        name = type(network).__name__
        raise ValueError(
            f"input: expected shape (*, {network.in_features}) for {name}(in_features={network.in_features}), "
            f"got {tuple(input.shape)}. Flatten each datum to one vector (e.g. x.flatten(1)) or set in_features."
        )
