"""Real data: a normal distribution whose scale is fixed or learned."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import require_positive_number, require_shape
from .observation import Observation, network_output
from .output_bias import data_mean, set_output_bias

__all__ = ["GaussianLikelihood"]


class GaussianLikelihood(nn.Module):
    r"""Independent normal elements, for real data.

    .. math:: p(x \mid z) = \prod_i \mathcal{N}(x_i \mid \mu_i(z), \sigma_i^2), \qquad \mu(z) = \mathrm{network}(z)

    A learned scale is :math:`\sigma = \sigma_{\min} + \operatorname{softplus}(s)`. Without the lower bound the density
    of data that the decoder fits exactly (constant pixels) would grow to infinity.

    Args:
        network: any module that maps ``(*, D)`` to ``(*, *E)``, the means; with ``scale="predicted"`` twice as many
            along the first dimension of ``E``: the means, then the scales before softplus.
        scale: :math:`\sigma`: a number (fixed), ``"shared"`` (one learned number), ``"per-dimension"`` (a learned
            number for each element of ``E``) or ``"predicted"`` (from ``z``, by the network).
        event_shape: ``E``, the shape of one datum, for instance ``(1, 28, 28)``; None means a vector, as long as the
            network's output. With ``scale="per-dimension"`` it must be given if the network has no ``out_features``.
        min_scale: :math:`\sigma_{\min} > 0`, in the unit of ``x``.

    Returns:
        ``forward(z, *given)`` returns a distribution of batch shape ``*`` and event shape ``E``; its ``log_prob`` is a
        density (nats per datum, in the unit of ``x``) and so can be above 0.

    Raises:
        ValueError: an unknown or non-positive ``scale``; ``event_shape`` is not a sequence of positive integers, or not
            the shape of the network's output; (from ``log_prob``) data that are not finite, or of another event shape.
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
        self.network = network
        self.event_shape = require_shape("event_shape", event_shape)
        self.min_scale = require_positive_number("min_scale", min_scale)
        self.scale: float | str
        if not isinstance(scale, str):
            self.scale = self._fixed_scale(scale)
        elif scale in ("shared", "per-dimension", "predicted"):
            self.scale = scale
        else:
            raise ValueError(f'scale: expected a number, "shared", "per-dimension" or "predicted", got {scale!r}.')
        if scale == "per-dimension" and self.event_shape is None:
            if not hasattr(network, "out_features"):
                raise ValueError(
                    'event_shape: expected the shape of one datum for scale="per-dimension", got None, and the network '
                    "has no out_features to take it from. Give event_shape=(...)."
                )
            self.event_shape = require_shape("network.out_features", (network.out_features,))
        if scale in ("shared", "per-dimension"):
            shape = self.event_shape or () if scale == "per-dimension" else ()
            self.raw_scale = nn.Parameter(self._inverse_scale(torch.ones(shape)))

    def _fixed_scale(self, scale: Any) -> float:
        """Return a given scale as a float; refuse one that is not finite or is below ``min_scale``."""
        number = float(scale) if isinstance(scale, numbers.Real) and not isinstance(scale, bool) else math.nan
        if not self.min_scale <= number < math.inf:
            raise ValueError(
                f"scale: expected a finite number of at least min_scale={self.min_scale:g}, or a word for a learned "
                f"one, got {scale!r}. Take a larger scale, a smaller min_scale, or 'per-dimension'."
            )
        return number

    def _inverse_scale(self, scale: Tensor) -> Tensor:
        """Return the s for which min_scale + softplus(s) = scale; a scale too small for that counts as 2 min_scale."""
        excess = (scale - self.min_scale).clamp(min=self.min_scale)
        return excess + (-(-excess).expm1()).log()

    def forward(self, z: Tensor, *given: Any) -> Observation:
        """Return p(x|z); ``given`` is not used."""
        scale: Tensor | float
        if self.scale == "predicted":
            loc, raw_scale = network_output(self.network, z, self.event_shape, parameters=2)
            scale = self.min_scale + F.softplus(raw_scale)
        else:
            (loc,) = network_output(self.network, z, self.event_shape)
            learned = isinstance(self.scale, str)
            scale = self.min_scale + F.softplus(self.raw_scale) if learned else self.scale  # type: ignore[assignment]
        return Observation(
            dist.Normal(loc, scale),
            self.event_shape,
            ("finite values for GaussianLikelihood", "Remove or impute values that are missing."),
        )

    def initialize_output_bias(self, x: Tensor) -> None:
        """Set the network's output bias to the mean of ``x`` ``(N, *E)``, and a learned scale to its deviation."""
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
