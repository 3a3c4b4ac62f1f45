"""A point in place of a posterior distribution."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .._precision import at_least_float32
from .network_input import network_input

__all__ = ["DeltaPosterior"]


class DeltaPosterior(nn.Module):
    r"""A point mass at what a network gives: a maximum a posteriori estimate of each latent variable.

    .. math:: q(z \mid x) = \delta(z - \mathrm{network}(x))

    A point has no density, so that there is no bound on log p(x): minus the loss is log p(x, z) at that point, and
    :func:`pyro_vae.bounds` refuses it. A VAE with it is an autoencoder whose code is regularized by the prior.

    Args:
        network: any module that maps ``(*, *E)`` to ``(*, D)``.

    Returns:
        ``forward(x, *given, mask=None)`` returns a distribution of batch shape ``*`` and event shape ``(D,)``.

    Raises:
        TypeError: ``x`` is not a floating-point tensor.
        ValueError: an output of the network is not finite.

    Example:
        >>> DeltaPosterior(nn.Linear(784, 3))(torch.zeros(5, 784)).sample().shape
        torch.Size([5, 3])

    Source:
        Pyro's ``AutoDelta``, amortized.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> dist.Delta:
        """Return q(z|x); ``given`` is not used. With a ``mask``, the network's input is x and the mask, joined."""
        point = at_least_float32(self.network(network_input(self.network, x, mask)))
        if torch.distributions.Distribution._validate_args and not point.isfinite().all():
            raise ValueError(  # Delta does not validate it
                f"network: expected finite outputs, got {point[~point.isfinite()][0].item()}. Look for values that are "
                "not finite in its input and in its parameters."
            )
        return dist.Delta(point).to_event(1)
