"""Real values: a normal distribution, its scale fixed or learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import dtype_of, require_event_shape, require_float
from .._precision import at_least_float32
from .observation import Observation
from .output_bias import data_mean, set_output_bias

__all__ = ["GaussianLikelihood"]


class GaussianLikelihood(nn.Module):
    r"""Independent normal elements, for real data.

    .. math:: p(x \mid z) = \prod_i \mathcal{N}(x_i \mid \mu_i(z), \sigma_i^2), \qquad \mu(z) = \mathrm{network}(z)

    A learned scale is :math:`\sigma = \sigma_{\min} + \operatorname{softplus}(s)`: unbounded, the density of data
    that the decoder fits exactly (constant pixels) runs off to infinity.

    Args:
        network: any module that maps ``(*, D)`` to ``(*, *E)``, the means; with ``scale="predicted"`` twice as many
            along the first dimension of ``E``: the means, then the scales before softplus.
        scale: :math:`\sigma`: a number (fixed), ``"shared"`` (one learned number), ``"per-dimension"`` (a learned
            number for each element of ``E``) or ``"predicted"`` (from ``z``, by the network).
        event_shape: ``E``; needed where ``len(E) > 1``, and for ``"per-dimension"`` where the network has no
            ``out_features``.
        min_scale: :math:`\sigma_{\min} > 0`, in the unit of ``x``.

    Returns:
        ``forward(z)`` returns a distribution of batch shape ``*`` and event shape ``E``; its ``log_prob`` is a density
        (nats per datum, in the unit of ``x``) and so can be above 0.

    Raises:
        ValueError: an unknown or non-positive ``scale``; a network whose width does not fit; (from ``log_prob``) data
            that are not finite, or of another event shape.
        TypeError: data or latent variables that are not floats of the parameters' dtype.

    Example:
        >>> likelihood = GaussianLikelihood(nn.Linear(2, 3), scale="shared")
        >>> likelihood(torch.zeros(5, 2)).log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])

    Source:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, equation 12; for a learned scale, Rybkin, Daniilidis
        and Levine (2021), Simple and effective VAE training with calibrated decoders.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        scale: float | str = "shared",
        event_shape: Sequence[int] | None = None,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__()
        if not 0 < min_scale < math.inf:
            raise ValueError(f"min_scale: expected a finite number above 0, got {min_scale!r}.")
        if isinstance(event_shape, int) or (event_shape is not None and len(event_shape) == 0):
            raise ValueError(f"event_shape: expected a sequence of at least one integer, got {event_shape!r}.")
        self.network = network
        self.event_shape = None if event_shape is None else tuple(event_shape)
        self.event_dim = len(self.event_shape or (1,))
        self.min_scale = min_scale
        self.scale = scale
        if scale == "shared":
            self.raw_scale = nn.Parameter(self._inverse_scale(torch.ones(())))
        elif scale == "per-dimension":
            width: Any = self.event_shape or getattr(network, "out_features", None)
            if width is None:
                raise ValueError(
                    'event_shape: expected the shape of one datum for scale="per-dimension", got None, and the network '
                    "has no out_features to take it from. Give event_shape=(...)."
                )
            self.raw_scale = nn.Parameter(self._inverse_scale(torch.ones(width)))
        elif isinstance(scale, str) and scale != "predicted":
            raise ValueError(f'scale: expected a number, "shared", "per-dimension" or "predicted", got {scale!r}.')
        elif not isinstance(scale, str) and (
            isinstance(scale, bool) or not isinstance(scale, (int, float)) or not min_scale <= scale < math.inf
        ):
            raise ValueError(
                f"scale: expected a finite number of at least min_scale={min_scale:g}, or a word for a learned one, "
                f"got {scale!r}. Take a larger scale, a smaller min_scale, or 'per-dimension'."
            )

    def _inverse_scale(self, scale: Tensor) -> Tensor:
        """The s with min_scale + softplus(s) = scale."""
        excess = (scale - self.min_scale).clamp(min=self.min_scale)
        return excess + (-(-excess).expm1()).log()

    def forward(self, z: Tensor) -> Observation:
        """p(x|z)."""
        require_float("z", z, dtype_of(self.network))
        loc = at_least_float32(self.network(z))
        scale: Tensor | float
        if self.scale == "predicted":
            if loc.shape[-self.event_dim] % 2:
                raise ValueError(
                    'network: expected an even number of outputs for scale="predicted" (means and scales), '
                    f"got {loc.shape[-self.event_dim]}. Give the network twice as many outputs as x has elements."
                )
            loc, raw_scale = loc.chunk(2, dim=-self.event_dim)
            scale = self.min_scale + F.softplus(raw_scale)
        elif isinstance(self.scale, str):
            scale = self.min_scale + F.softplus(self.raw_scale)
        else:
            scale = self.scale
        if self.event_shape is not None:
            require_event_shape("network", loc, self.event_shape, "event_shape")
        return Observation(
            dist.Normal(loc, scale),
            self.event_dim,
            ("finite values for GaussianLikelihood", "Remove or impute values that are missing."),
        )

    def initialise_output_bias(self, x: Tensor) -> None:
        """Start from the mean, and where it is learned the scale, of ``x`` ``(N, *E)``."""
        mean = data_mean(x)
        std = x.std(0, correction=0)
        if self.scale == "predicted":
            set_output_bias(self.network, torch.cat([mean, self._inverse_scale(std)]))
            return
        set_output_bias(self.network, mean)
        if isinstance(self.scale, str):
            with torch.no_grad():
                shared = std.square().mean().sqrt()
                self.raw_scale.copy_(self._inverse_scale(shared if self.scale == "shared" else std))
